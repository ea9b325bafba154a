"""``superscaler explain``: what a plan file says about one of its things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_without_a_name_it_says_what_can_be_asked(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("explain", tiny_plan)
    assert said.code == 0
    assert "a worker: 0 to 3" in said.out
    assert "a parameter: " in said.out


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("blocks.0.mlp.up.weight", ["lives", "is read", "its gradient", "its update", "in 2 parts along"]),
        ("blocks.0.mlp", ["parameters and buffers", "runs", "ops"]),
        ("2", ["worker 2 of 4", "stands", "holds", "does", "exchanges"]),
    ],
)
def test_a_parameter_a_module_a_worker(
    subject: str, expected: list[str], superscaler: Command, tiny_plan: Path
) -> None:
    said = superscaler("explain", tiny_plan, subject)
    assert said.code == 0
    assert all(text in said.out for text in expected), said.out


def test_an_op_with_its_splits_as_json(superscaler: Command, tiny_plan: Path) -> None:
    module = json.loads(superscaler("explain", tiny_plan, "blocks.0.mlp", "--json").out)
    name = next(line for line in module["sections"]["ops"] if "mm" in line).split(" ")[0]
    found = json.loads(superscaler("explain", tiny_plan, name, "--json").out)
    assert found["subject"] == name
    assert any("parts" in line for line in found["sections"]["is split"])


def test_an_unknown_name_and_one_like_it(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("explain", tiny_plan, "blocks.0.mlp.up.wieght")
    assert said.code == 2
    assert "did you mean 'blocks.0.mlp.up.weight'" in said.err
    assert superscaler("explain", tiny_plan, "worker 9").code == 2
