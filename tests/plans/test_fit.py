"""Plans within memory: what "solve" makes of the limits of every device, and what is said where nothing fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

import superscaler as ss
from superscaler.api import compile_graphs
from superscaler.errors import InfeasiblePlan
from superscaler.ir.cluster import GIB
from superscaler.ir.graph import Graph
from superscaler.plans import parse
from superscaler.trace import trace
from tests.test_exactness import gpt

LINEAR = "pipeline:stages=2,microbatches=4,schedule=solve"
V = "pipeline:stages=4,microbatches=4,schedule=solve,placement=v"


@cache
def graph() -> Graph:
    model, args = gpt(16, layers=4, hidden=32, heads=2, vocab=32, context=32)
    return trace(model, args).graph


def compiled(plan: str, memory: int = GIB, devices: int = 2) -> ss.Plan:
    cluster = ss.Cluster.local(devices, memory=memory / GIB)
    return compile_graphs({"train": graph()}, cluster, parse(plan))


def peak(plan: ss.Plan) -> int:
    return max(program.peak for program in plan.entries["train"].programs)


@pytest.mark.parametrize("plan", [LINEAR, V])
def test_solve_stays_within_the_memory_of_every_device(plan: str) -> None:
    free = compiled(plan)
    limit = int(peak(free) * 0.8)
    tight = compiled(plan, limit)
    assert peak(tight) <= limit
    known, loose = tight.entries["train"].certificate, free.entries["train"].certificate
    assert known.bound <= known.makespan
    assert loose.makespan <= known.makespan
    assert known.gap == pytest.approx(1 - known.bound / known.makespan)
    assert known.binding


def said(act: Callable[[], object]) -> InfeasiblePlan:
    with pytest.raises(InfeasiblePlan) as caught:
        act()
    return caught.value


def test_too_little_for_any_schedule_names_limits_and_changes_that_were_seen_to_help() -> None:
    error = said(lambda: compiled(LINEAR, int(peak(compiled(LINEAR)) * 0.3)))
    assert "no schedule fits worker" in error.what
    assert any(line.startswith("limits in conflict: memory[") for line in error.details)
    assert error.hint is not None
    assert " of memory per device" in error.hint


@pytest.mark.parametrize(("word", "plan", "changed"), [
    ("microbatches=8", "pipeline:stages=2,microbatches=4", None),
    ("schedule=solve", "pipeline:stages=2,microbatches=4,schedule=gpipe", LINEAR),
    ("recompute", "pipeline:stages=2,microbatches=4,schedule=gpipe", None),
])  # fmt: skip
def test_each_change_that_is_named_makes_the_plan_fit(word: str, plan: str, changed: str | None) -> None:
    limit = int(peak(compiled(plan)) * 0.75)
    error = said(lambda: compiled(plan, limit))
    assert error.hint is not None
    assert word in error.hint
    if changed is not None:
        assert peak(compiled(changed, limit)) <= limit


def test_the_memory_that_is_named_is_enough_and_the_least_that_a_named_schedule_takes() -> None:
    plan = "pipeline:stages=2,microbatches=4"
    enough = peak(compiled(plan))
    assert peak(compiled(plan, enough + 1)) == enough
    assert said(lambda: compiled(plan, enough - 1024)).hint
