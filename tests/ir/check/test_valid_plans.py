"""No false alarm: the check finds nothing wrong in plans that are right."""

from __future__ import annotations

import msgspec
import pytest
from compiled import KINDS, compiled

from superscaler.ir.check import Fault, check
from superscaler.ir.graph import Op
from superscaler.ir.layout import Mesh, Space
from superscaler.ir.plan import Plan
from superscaler.ir.program import Definition
from superscaler.ir.rules import specs
from superscaler.ir.rules.rule import Rule, Shape, Spec, parse_rule
from tests.ir.plans_by_hand import Role, graph_of, in_one_piece, plan_of, tensor_parallel
from tests.ir.plans_by_hand_more import BY_HAND


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_compiled_plans_are_proven(kind: tuple[str, int, bool]) -> None:
    plan = compiled(*kind)
    report = check(plan, strict=True)
    assert set(report.entries) == set(plan.entries)
    assert report.tasks == sum(len(p.order) for e in plan.entries.values() for p in e.programs)
    assert report.assumptions == ()


@pytest.mark.parametrize("make", [in_one_piece, tensor_parallel, *BY_HAND], ids=lambda make: make.__name__)
def test_plans_by_hand_are_proven(make) -> None:  # type: ignore[no-untyped-def]
    check(make())


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_any_number_of_microbatches(microbatches: int) -> None:
    report = check(tensor_parallel(microbatches))
    assert report.entries["train"].communications == microbatches


def test_the_report_says_what_was_proven() -> None:
    plan: Plan = tensor_parallel()
    report = check(plan)
    assert report.entries["train"].roles == 1
    # half of both weights, and the arena
    assert report.entries["train"].memory == (4 * 3 + 3 * 2) * 4 + plan.entries["train"].programs[0].arena
    assert "5 tasks" in str(report)


def test_discovered_rules_are_assumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that rests on one is proven under it, and refused when nothing may be assumed."""

    def found(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
        rule = parse_rule("b h -> b h", ins, outs, family="pointwise")
        return msgspec.structs.replace(rule, discovered=True)

    monkeypatch.setitem(specs(), "custom.twice", ("pointwise", Spec(found)))
    graph = graph_of("y = custom.twice x", {"x": (4, 2), "y": (4, 2)}, ("x",), outputs={"y": "y"})
    space = Space((), (Mesh("m", (), (), (0,)),))
    definitions: list[Definition] = []
    role = Role(graph, space, (0,), definitions)
    x, y = role.value("x"), role.value("y")
    role.run(role.block("forward", role.call("y", (x,), (y,))))
    plan = plan_of(graph, space, (role.program(inputs={"x": x}, outputs={"y": y}),), definitions, {}, name="eval")
    assert check(plan).assumptions == ("custom.twice: b h -> b h",)
    with pytest.raises(Fault, match="discovered rule: the proof rests on 1 discovered rules") as caught:
        check(plan, strict=True)
    assert "custom.twice" in str(caught.value)
