"""``superscaler ops`` and ``superscaler plans``."""

from __future__ import annotations

import json

from superscaler.ir.rules import specs
from superscaler.plans import PLANS
from tests.cli.conftest import Command


def test_every_rule_is_listed_with_its_family_and_dims(superscaler: Command) -> None:
    listed = json.loads(superscaler("ops", "--json").out)["ops"]
    assert {op["op"] for op in listed} == set(specs())
    product = next(op for op in listed if op["op"] == "aten.mm.default")
    assert product["family"] == "matmul"
    assert len(product["dims"]) == 3
    said = superscaler("ops").out
    assert all(family in said for family, _ in specs().values())


def test_every_plan_is_listed_with_its_options(superscaler: Command) -> None:
    listed = json.loads(superscaler("plans", "--json").out)["plans"]
    assert {plan["name"] for plan in listed} == set(PLANS)
    assert all(plan["what"] for plan in listed)
    megatron = next(plan for plan in listed if plan["name"] == "megatron")
    assert "tensor=1" in megatron["options"]
    assert "megatron" in superscaler("plans").out
