"""Solving knows the named schedules: it never ends in a longer one than asking by name."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import ScheduleError, UsageError
from superscaler.scheduler.certified import named_pipeline, solve_pipeline
from superscaler.scheduler.constructive import schedules
from superscaler.scheduler.flow import flow_of
from superscaler.scheduler.named_starts import named_starts
from superscaler.scheduler.periodic import feasible
from superscaler.scheduler.pipeline import PipelineProblem

PLACEMENTS = {"linear": 1, "v": 2, "interleaved": 2, "bidirectional": 1}


@st.composite
def problems(draw: st.DrawFn) -> PipelineProblem:
    """Uneven stages, any placement, communication and memory."""
    placement = draw(st.sampled_from(sorted(PLACEMENTS)))
    devices = draw(st.sampled_from((2, 4)))
    stages = devices * PLACEMENTS[placement]
    forward, backward, weight = (
        tuple(draw(st.lists(st.integers(1, 9), min_size=stages, max_size=stages))) for _ in range(3)
    )
    limit = draw(st.none() | st.integers(2 * stages // devices, 3 * stages))
    comm = draw(st.sampled_from((0, 1, 12)))
    count = draw(st.sampled_from((4, 8)))
    return PipelineProblem(stages, count, forward, backward, weight, comm, limit, devices, placement)


@given(problems())
@settings(max_examples=8, deadline=None)
def test_no_named_schedule_is_shorter_than_what_is_constructed(problem: PipelineProblem) -> None:
    solved = solve_pipeline(problem, effort=0)
    for name in schedules():
        with suppress(ScheduleError, UsageError):
            assert solved.makespan <= named_pipeline(problem, name).makespan, name


@pytest.mark.parametrize("placement", ["linear", "v", "interleaved"])
def test_they_start_as_early_as_their_order_lets_them(placement: str) -> None:
    devices = 8 // PLACEMENTS[placement]
    problem = PipelineProblem(8, 8, tuple(range(3, 11)), 8, 9, comm=2, devices=devices, placement=placement)
    flow = flow_of(problem)
    found = dict(named_starts(flow, lambda: False))
    assert found
    for name, starts in found.items():
        assert feasible(flow, starts)
        assert flow.makespan(starts) == named_pipeline(problem, name).makespan


def test_none_is_made_once_time_is_up() -> None:
    assert not list(named_starts(flow_of(PipelineProblem(4, 8)), lambda: True))
