"""Orders of single tasks: kept in the plan, exact, and named with their cycle where they contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import superscaler as ss
from superscaler.errors import SuperscalerError
from superscaler.ir.plan import Plan
from superscaler.plans.placement import pipeline_stages
from superscaler.plans.planner import PlanScript
from tests.cases import slow
from tests.exact import assert_exact
from tests.test_exactness import gpt

Turn = tuple[str, int, int]


def ordered(schedule: str, *pairs: tuple[Turn, Turn]) -> PlanScript:
    """Four stages in a V on two devices, four micro-batches."""

    def script(p: ss.Planner) -> None:
        pipeline_stages(p, [[0], [1]], 4, "v")
        p.order(schedule)
        for a, b in pairs:
            p.order(a, before=b)

    return script


def turns(plan: Plan, worker: int) -> list[Turn]:
    program = plan.entries["train"].programs[worker]
    blocks = [(program.blocks[item.block], item.microbatch) for item in program.order]
    return [(block.kind, block.stage, j) for block, j in blocks if block.lane == "compute" and block.over]


@pytest.mark.parametrize("schedule", ["solve", slow("1f1b")])
def test_a_task_comes_before_another(schedule: str) -> None:
    model, args = gpt(4, layers=4)
    first, then = ("forward", 0, 3), ("forward", 3, 0)
    without = turns(assert_exact(model, args, ordered(schedule, (then, first)), 2), 0)
    assert without.index(then) < without.index(first)
    found = turns(assert_exact(model, args, ordered(schedule, (first, then)), 2), 0)
    assert found.index(first) < found.index(then)


@pytest.mark.parametrize(("schedule", "pairs", "says"), [
    ("solve", [(("backward", 0, 0), ("forward", 0, 0))], ["a cycle", "forward[stage 0, micro-batch 0]"]),
    ("solve", [(("forward", 0, 1), ("forward", 0, 2)), (("forward", 0, 2), ("forward", 0, 1))],
     ["a cycle", "forward[stage 0, micro-batch 1]", "forward[stage 0, micro-batch 2]", "drop one"]),
    ("zb_v", [(("weight", 0, 3), ("forward", 0, 0))], ["a cycle", "weight[stage 0, micro-batch 3]"]),
    ("zb_v", [(("weight", 0, 1), ("backward", 0, 1))], ["a cycle"]),
    ("solve", [(("forward", 0, 0), ("forward", 1, 0))], ["run on different devices"]),
    ("solve", [(("forward", 0, 9), ("forward", 0, 0))], ["no task ('forward', 0, 9)"]),
    ("1f1b", [(("weight", 0, 0), ("forward", 0, 1))], ["no task ('weight', 0, 0)", "zero-bubble"]),
    ("zbv", [], ["did you mean 'zb_v'"]),
])  # fmt: skip
def test_contradictions_are_printed(schedule: str, pairs: Sequence[tuple[Turn, Turn]], says: Sequence[str]) -> None:
    model, args = gpt(4, layers=4)
    with pytest.raises(SuperscalerError) as caught:
        ss.compile(model, args, cluster=ss.Cluster.local(2), plan=ordered(schedule, *pairs), evaluate=False)
    for words in says:
        assert words in str(caught.value)


def test_an_order_says_before_what() -> None:
    model, args = gpt(4, layers=4)

    def script(p: ss.Planner) -> None:
        p.order(("forward", 0, 0))

    with pytest.raises(SuperscalerError, match="says nothing"):
        ss.compile(model, args, cluster=ss.Cluster.local(1), plan=script, evaluate=False)
