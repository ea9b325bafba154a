"""Improvement by windows keeps a schedule feasible, whatever two windows find at once."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from superscaler.scheduler.flow import flow_of
from superscaler.scheduler.greedy import greedy, policies, tuning
from superscaler.scheduler.periodic import feasible
from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.polish import Budget, polish


@settings(max_examples=10, deadline=None)
@given(
    devices=st.integers(2, 4),
    microbatches=st.integers(2, 8),
    costs=st.tuples(*[st.integers(3, 9)] * 3),
    comm=st.integers(0, 7),
    spare=st.integers(0, 3),
    seed=st.integers(0, 3),
)
@example(3, 7, (6, 9, 4), 7, 3, 0)
def test_polished_schedules_are_feasible_and_no_longer(
    devices: int, microbatches: int, costs: tuple[int, int, int], comm: int, spare: int, seed: int
) -> None:
    problem = PipelineProblem(2 * devices, microbatches, *costs, comm, 2 + spare, devices=devices, placement="v")
    flow = flow_of(problem)
    for policy, _ in list(policies(flow))[:3]:
        starts = greedy(flow, tuning(flow, policy))
        polished = polish(flow, starts, 0, Budget(0.1, seed))
        assert feasible(flow, polished)
        assert flow.makespan(polished) <= flow.makespan(starts)
