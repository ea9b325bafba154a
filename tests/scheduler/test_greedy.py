"""Greedy schedules in little memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.scheduler.flow import Flow, flow_of
from superscaler.scheduler.greedy import PREFERENCES, Policy, Rooms, greedy, tuning
from superscaler.scheduler.greedy_back import greedy_back
from superscaler.scheduler.periodic import feasible
from superscaler.scheduler.pipeline import PipelineProblem


def pipeline(devices: int, chunks: int, microbatches: int, places: int, comm: int = 0) -> Flow:
    placement = "v" if chunks == 2 else "interleaved"
    return flow_of(
        PipelineProblem(
            stages=chunks * devices, devices=devices, microbatches=microbatches, forward=5, backward=5, weight=5,
            comm=comm, max_activations=places, placement=placement,
        )
    )  # fmt: skip


@given(
    devices=st.integers(1, 4), chunks=st.integers(2, 4), microbatches=st.integers(1, 6), spare=st.integers(0, 5),
    reach=st.sampled_from((0.5, 1.0, 9.0)), back=st.booleans(), comm=st.sampled_from((0, 3)),
)  # fmt: skip
def test_entering_early_never_runs_into_a_dead_end(
    devices: int, chunks: int, microbatches: int, spare: int, reach: float, back: bool, comm: int
) -> None:
    flow = pipeline(devices, chunks, microbatches, chunks + spare, comm)
    tuned = tuning(flow, Policy("forward first", reach, early=True))
    assert feasible(flow, (greedy_back if back else greedy)(flow, tuned))


@given(
    devices=st.integers(1, 4), chunks=st.integers(1, 3), microbatches=st.integers(1, 6), spare=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=12), comm=st.sampled_from((0, 3)), less=st.integers(0, 40),
    preference=st.sampled_from(PREFERENCES), back=st.booleans(),
)  # fmt: skip
def test_a_limit_gives_up_nothing_that_keeps_it(
    devices: int, chunks: int, microbatches: int, spare: int, sizes: list[int], comm: int, less: int,
    preference: str, back: bool,
) -> None:  # fmt: skip
    stages = devices * chunks
    costs = tuple(sizes[:stages])
    placement = "linear" if chunks == 1 else "interleaved"
    flow = flow_of(PipelineProblem(stages, microbatches, costs, costs, costs, comm, chunks + spare, devices, placement))
    tuned, make = tuning(flow, Policy(preference, 1.0)), greedy_back if back else greedy
    whole = make(flow, tuned)
    assert make(flow, tuned, flow.makespan(whole)) == whole
    assert make(flow, tuned, flow.makespan(whole) - 1 - less) in ([], whole)
    assert make(flow, tuned, max(flow.load) * microbatches - 1) == []


@pytest.mark.parametrize("places", [2, 3])
def test_entering_early_overlaps_what_else_goes_one_by_one(places: int) -> None:
    flow = pipeline(4, 2, 12, places)
    late, early = (greedy(flow, tuning(flow, Policy("forward first", 0.5, early=early))) for early in (False, True))
    assert flow.makespan(early) < flow.makespan(late)


def test_the_places_of_one_that_has_been_through_are_counted_on() -> None:
    flow = pipeline(2, 2, 4, 2)
    rooms = Rooms(flow, early=True)
    rooms.take(0, 0)
    assert rooms.left(0) == 1  # kept for the later stage of the one that entered
    rooms.take(0, 3)
    assert rooms.left(0) == 0  # none is free
    rooms.give_back(0)
    assert rooms.left(0) == 2  # the other one will be free before it is needed
    assert Rooms(flow, early=False).left(0) == 2
