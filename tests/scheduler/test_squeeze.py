"""Squeezing: never longer, always feasible, and V-Half and V-Min as short as published or shorter."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.scheduler.flow import Flow
from superscaler.scheduler.greedy import greedy, policies, tuning
from superscaler.scheduler.pattern import PERIOD, v_patterns
from superscaler.scheduler.periodic import feasible
from superscaler.scheduler.squeeze import squeeze
from superscaler.scheduler.unroll import unroll


def unit_flow(devices: int, microbatches: int, capacity: int) -> Flow:
    """A V of unit tasks."""
    device = tuple(min(s, 2 * devices - 1 - s) for s in range(2 * devices))
    none = (0,) * len(device)
    return Flow(device, ((1,) * len(device),) * 3, none, none, (capacity,) * devices, microbatches)


@settings(max_examples=30, deadline=None)
@given(devices=st.integers(1, 5), microbatches=st.integers(1, 9), spare=st.integers(0, 8), which=st.integers(0, 7))
def test_it_is_feasible_and_never_longer(devices: int, microbatches: int, spare: int, which: int) -> None:
    flow = unit_flow(devices, microbatches, 2 + spare)
    policy = next(p for i, (p, _) in enumerate(policies(flow)) if i == which)
    starts = greedy(flow, tuning(flow, policy))
    squeezed = squeeze(flow, starts)
    assert feasible(flow, squeezed)
    assert flow.makespan(squeezed) <= flow.makespan(starts)


def test_the_ramps_of_a_pattern_get_shorter() -> None:
    flow = unit_flow(4, 16, 6)
    unrolled = [starts for p in v_patterns(4, 6) if (starts := unroll(flow, p, PERIOD)) is not None]
    assert min(map(flow.makespan, unrolled)) == 103
    assert min(flow.makespan(squeeze(flow, starts)) for starts in unrolled) == 101
