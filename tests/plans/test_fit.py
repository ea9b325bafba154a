"""Plans within memory: what "solve" makes of the limits of every device, and what is said where nothing fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.api import compile_graphs
from superscaler.errors import InfeasiblePlan
from superscaler.ir.cluster import GIB
from superscaler.ir.graph import Graph
from superscaler.plans import parse
from superscaler.trace import trace
from tests.cases import slow
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


@pytest.mark.parametrize("plan", [LINEAR, slow(V)])
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
    ("microbatches=", "pipeline:stages=2,microbatches=4", None),
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


UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def named(error: InfeasiblePlan) -> tuple[int, int]:
    """The memory that an error asks for, and the last digit of it."""
    text, unit = (error.hint or "").partition(" of memory per device")[0].split()
    step = UNITS[unit] / 10 ** len(text.partition(".")[2])
    return int(float(text) * UNITS[unit]), int(step) + 1


@pytest.mark.parametrize("share", [0.9, 0.5])
@pytest.mark.parametrize(
    "plan", ["pipeline:stages=2,microbatches=4", "pipeline:stages=2,microbatches=4,schedule=gpipe"]
)
def test_the_memory_that_is_named_is_enough_and_the_least_that_a_named_schedule_takes(plan: str, share: float) -> None:
    enough, digit = named(said(lambda: compiled(plan, int(peak(compiled(plan)) * share))))
    assert peak(compiled(plan, enough)) <= enough
    assert said(lambda: compiled(plan, enough - digit)).hint


@pytest.mark.parametrize("plan", [LINEAR, slow(V)])
def test_the_memory_that_is_named_is_enough_for_solve_and_the_least(plan: str) -> None:
    enough, digit = named(said(lambda: compiled(plan, int(peak(compiled(plan)) * 0.2))))
    assert peak(compiled(plan, enough)) <= enough
    assert said(lambda: compiled(plan, enough - digit)).hint


def test_the_number_of_micro_batches_that_is_named_is_the_least() -> None:
    limit = int(peak(compiled("pipeline:stages=2,microbatches=4")) * 0.8)
    hint = said(lambda: compiled("pipeline:stages=2,microbatches=4", limit)).hint or ""
    count = int(hint.partition("microbatches=")[2].partition(",")[0])
    assert count > 4
    assert peak(compiled(f"pipeline:stages=2,microbatches={count}", limit)) <= limit
    assert said(lambda: compiled(f"pipeline:stages=2,microbatches={count - 1}", limit)).hint


@pytest.mark.parametrize("plan", ["data_parallel:ways=1", "pipeline:stages=2,microbatches=4"])
def test_inputs_count_where_they_are_most_of_what_is_held(plan: str) -> None:
    model = nn.Sequential(nn.Linear(256, 2), nn.Tanh(), nn.Linear(2, 2))
    wide = trace(model, (torch.randn(64, 256),), loss=torch.sum).graph

    def compiled(memory: int) -> ss.Plan:
        return compile_graphs({"train": wide}, ss.Cluster.local(2, memory=memory / GIB), parse(plan))

    enough = peak(compiled(GIB))
    assert enough > 64 * 256 * 4
    assert peak(compiled(enough)) == enough
    assert said(lambda: compiled(enough - 64)).hint
