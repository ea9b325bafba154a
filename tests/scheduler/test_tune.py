"""Tuning: what is tried once is known for all that comes to the same."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from superscaler.scheduler.flow import flow_of
from superscaler.scheduler.greedy import PREFERENCES, Policy, Tuning, greedy, tuning
from superscaler.scheduler.greedy_back import greedy_back
from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.tune import climb, without_difference


@given(
    devices=st.integers(1, 3), chunks=st.integers(1, 2), microbatches=st.integers(1, 6), spare=st.integers(0, 4),
    sizes=st.lists(st.integers(1, 9), min_size=6, max_size=6), preference=st.sampled_from(PREFERENCES),
    back=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_tunings_without_difference_make_one_schedule(
    devices: int, chunks: int, microbatches: int, spare: int, sizes: list[int], preference: str, back: bool, seed: int
) -> None:
    stages, dice = devices * chunks, Random(seed)
    costs, placement = tuple(sizes[:stages]), "linear" if chunks == 1 else "interleaved"
    flow = flow_of(PipelineProblem(stages, microbatches, costs, costs, costs, 1, chunks + spare, devices, placement))
    start = tuning(flow, Policy(preference, 1.0))
    more = [dice.choice((0, 1, 9)) for _ in range(stages)]
    shift = [float(dice.randint(-20, 20)) for _ in range(devices)]
    tuned = Tuning(
        tuple(n + m for n, m in zip(start.in_flight, more, strict=True)),
        tuple(value + shift[d] for value, d in zip(start.forward, flow.device, strict=True)),
        tuple(value + shift[d] for value, d in zip(start.backward, flow.device, strict=True)),
    )
    make = greedy_back if back else greedy
    assert make(flow, tuned) == make(flow, without_difference(flow, tuned))


def test_climbing_ends_at_the_floor_or_no_longer_than_it_began() -> None:
    flow = flow_of(PipelineProblem(4, 8, (9, 10, 11, 12), (10, 12, 9, 11), (8, 9, 10, 11), 1, 4))
    start = tuning(flow, Policy("backward first", 0.5))
    first = flow.makespan(greedy(flow, start))
    found = flow.makespan(climb(flow, greedy, start, 0, 200, 200, 0, lambda: False))
    assert found < first
    assert flow.makespan(climb(flow, greedy, start, first, 200, 200, 0, lambda: False)) == first


def test_climbing_ends_when_it_has_not_gained_for_long() -> None:
    flow = flow_of(PipelineProblem(4, 8, (9, 10, 11, 12), (10, 12, 9, 11), (8, 9, 10, 11), 1, 4))
    start = tuning(flow, Policy("backward first", 0.5))
    impatient = climb(flow, greedy, start, 0, 200, 0, 0, lambda: False)
    assert impatient == climb(flow, greedy, start, 0, 1, 200, 0, lambda: False)
