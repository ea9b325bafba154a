"""Reasons: the change that is named makes the problem feasible, and nothing smaller of its sort does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import superscaler as ss
from superscaler.errors import InfeasiblePlan
from superscaler.scheduler import Job, Problem, solve, verify
from superscaler.scheduler.explain import fits, held_at_once, least_held, recompute, smallest_changes
from tests.scheduler.oracle import possible, to_problem


def forwards_then_backwards(count: int, capacity: int) -> Problem:
    """One device, ``count`` micro-batches of two units each; a barrier makes all forwards precede all backwards."""
    lane = ((0, "compute"),)
    jobs = [Job(0, "forward", 0, j, 2, lane, acquire=2) for j in range(count)]
    jobs += [Job(0, "backward", 0, j, 2, lane, release=2) for j in range(count)]
    edges = [(i, count + j, 0) for i in range(count) for j in range(count)]
    return Problem(tuple(jobs), tuple(edges), (capacity,))


def test_memory_micro_batches_and_recompute_are_each_offered() -> None:
    problem = forwards_then_backwards(4, 5)
    assert not fits(problem)
    texts = [change.text for change in smallest_changes(problem)]
    assert texts == ["8 units of memory on device 0", "2 micro-batches instead of 4", "recompute stage 0"]
    assert all(fits(change.problem) for change in smallest_changes(problem))


def test_the_error_names_the_limits_in_conflict() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        solve(forwards_then_backwards(4, 5))
    assert "limits in conflict: memory[0]=5, microbatches=4" in str(caught.value)
    assert caught.value.hint is not None


def test_what_must_all_be_held_at_once_is_told_without_search() -> None:
    problem = forwards_then_backwards(60, 119)
    assert held_at_once(problem)
    assert not held_at_once(replace(problem, capacity=(120,)))
    texts = [change.text for change in smallest_changes(problem)]
    assert texts == ["120 units of memory on device 0", "59 micro-batches instead of 60", "recompute stage 0"]


def test_recompute_gives_memory_back_and_takes_it_again() -> None:
    table = solve(recompute(forwards_then_backwards(4, 3), 0))
    assert table.makespan == 4 * (2 + 2 + 2)


# --- whatever the problem, as trying every order has it --------------------------------------------------------------

DEVICES_AND_STAGES = {"linear": (3, 3), "v": (2, 4), "interleaved": (2, 4)}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A pipeline whose stages hold different amounts, from their forward on and from their backward on; with a barrier
    at some stage, all micro-batches at once."""
    placement = draw(st.sampled_from(sorted(DEVICES_AND_STAGES)))
    devices, stages = DEVICES_AND_STAGES[placement]
    count = 1 if stages > 3 else draw(st.integers(1, 2))
    shape = ss.PipelineProblem(stages, count, devices=devices, placement=placement)
    plain = to_problem(shape)
    sizes = [(draw(st.integers(0, 3)), draw(st.integers(0, 2))) for _ in range(stages)]

    def sized(job: Job) -> Job:
        early, late = sizes[job.stage]
        takes = {"forward": early, "backward": late, "weight": 0}[job.kind]
        return replace(job, acquire=takes, release=early + late if job.kind == "weight" else 0)

    jobs = tuple(map(sized, plain.jobs))
    barrier = draw(st.none() | st.integers(0, stages - 1))
    numbered = [(i, job.kind) for i, job in enumerate(jobs) if job.stage == barrier]
    edges = [(a, b, 0) for a, first in numbered for b, then in numbered if (first, then) == ("forward", "backward")]
    capacity = draw(st.tuples(*[st.none() | st.integers(0, 6)] * devices))
    return Problem(jobs, (*plain.edges, *edges), capacity)


def with_one_unit_less(problem: Problem, changed: Problem) -> Iterator[Problem]:
    for device, (old, new) in enumerate(zip(problem.capacity, changed.capacity, strict=True)):
        if old != new and new is not None:
            yield replace(changed, capacity=(*changed.capacity[:device], new - 1, *changed.capacity[device + 1 :]))


@given(problems(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_micro_batch_after_another_fits_whenever_anything_does(problem: Problem, ends: bool) -> None:
    if ends:  # as an optimizer does, which belongs to no micro-batch
        last = [(i, len(problem.jobs), 0) for i, job in enumerate(problem.jobs) if job.kind == "weight"]
        optimizer = Job(0, "optimizer", 0, -1, 1, ((0, "compute"),))
        problem = Problem((*problem.jobs, optimizer), (*problem.edges, *last), problem.capacity)
    starts = least_held(problem)
    assert (starts is not None) == possible(problem)
    if starts is not None:
        verify(problem, starts)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_what_fits_is_scheduled_and_what_does_not_is_told_the_least_that_helps(problem: Problem) -> None:
    assert not (possible(problem) and held_at_once(problem))
    if possible(problem):
        assert solve(problem, effort=0.1).starts
        return
    with pytest.raises(InfeasiblePlan):
        solve(problem)
    changes = list(smallest_changes(problem))
    assert changes
    for change in changes:
        assert possible(change.problem)
        assert not any(possible(less) for less in with_one_unit_less(problem, change.problem))
    several = len({job.microbatch for job in problem.jobs}) > 1
    alone = Problem(*one_microbatch(problem), problem.capacity)
    assert any("micro-batches instead" in change.text for change in changes) == (several and possible(alone))
    stages = {job.stage for job in problem.jobs if job.kind == "forward" and job.acquire}
    helps = any(possible(recompute(problem, stage)) for stage in stages)
    assert any("recompute" in change.text for change in changes) == helps


@given(st.lists(st.integers(1, 2), min_size=2, max_size=2), st.lists(st.integers(1, 9), min_size=4, max_size=4))
@settings(max_examples=10, deadline=None)
def test_a_pipeline_is_told_the_same(limits: list[int], forward: list[int]) -> None:
    asked = ss.PipelineProblem(4, 1, tuple(forward), max_activations=tuple(limits), placement="v")
    if limits == [2, 2]:
        assert ss.schedule(asked).makespan
        return
    changes = " or ".join(change.text for change in smallest_changes(to_problem(asked)))
    with pytest.raises(InfeasiblePlan) as caught:
        ss.schedule(asked)
    assert (caught.value.hint or "").replace("activations", "units of memory").replace(", or", " or") == changes


def one_microbatch(problem: Problem) -> tuple[tuple[Job, ...], tuple[tuple[int, int, int], ...]]:
    kept = [i for i, job in enumerate(problem.jobs) if job.microbatch == 0]
    place = {i: k for k, i in enumerate(kept)}
    edges = tuple((place[a], place[b], delay) for a, b, delay in problem.edges if a in place and b in place)
    return tuple(problem.jobs[i] for i in kept), edges


@pytest.mark.parametrize(("said", "message", "hint"), [
    ({"placement": "v", "max_activations": 1}, r"memory\[0\]=1, memory\[1\]=1", "2 activations on every device"),
    ({"placement": "v", "max_activations": (4, 1)}, r"memory\[1\]=1", "2 activations on device 1"),
    ({"placement": "interleaved", "devices": 1, "max_activations": 2}, r"memory\[0\]=2", "4 activations on device 0"),
])  # fmt: skip
def test_a_pipeline_is_told_how_many_activations_are_enough(said: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InfeasiblePlan, match=message) as caught:
        ss.schedule(ss.PipelineProblem(4, 8, **said))
    assert (caught.value.hint or "").startswith(hint)
