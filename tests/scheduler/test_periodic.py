"""Repeating the steady state: what is checked for a few repetitions holds for any number."""

import random

import pytest

from superscaler.scheduler.certified import solve_pipeline
from superscaler.scheduler.flow import Flow, Starts, flow_of
from superscaler.scheduler.greedy import Policy, greedy, tuning
from superscaler.scheduler.periodic import extend, feasible
from superscaler.scheduler.pipeline import PipelineProblem


def linear(microbatches: int, comm: int = 1) -> tuple[Flow, Starts]:
    flow = flow_of(PipelineProblem(4, microbatches, 7, 9, 5, comm=comm, max_activations=5))
    return flow, greedy(flow, tuning(flow, Policy("forward first", 1.0, 0.0, 0.3)))


@pytest.mark.parametrize("many", [33, 50, 321, 1000])
def test_the_repetition_is_feasible_and_adds_one_period_per_micro_batch(many: int) -> None:
    flow, starts = linear(32)
    course = extend(flow, starts, many)
    assert course is not None
    assert course.makespan == flow.makespan(starts) + 21 * (many - 32)
    wide = flow.with_microbatches(many)
    assert feasible(wide, course.expand())
    assert wide.makespan(course.expand()) == course.makespan


def test_feasible_sees_every_kind_of_fault() -> None:
    flow, starts = linear(8)
    assert feasible(flow, starts)
    draw = random.Random(0)
    for _ in range(200):
        kind, s, j = draw.randrange(3), draw.randrange(4), draw.randrange(8)
        moved = [[list(row) for row in rows] for rows in starts]
        moved[kind][s][j] -= draw.randint(1, 4)
        again = [[list(row) for row in rows] for rows in moved]
        assert not feasible(flow, again) or any(_idle_before(flow, starts, kind, s, j))
    tight = flow.with_capacity((1,) * 4)
    assert not feasible(tight, starts)


def _idle_before(flow: Flow, starts: Starts, kind: int, s: int, j: int) -> list[bool]:
    """Whether the device idles right before the task, so that it might have started earlier."""
    start = starts[kind][s][j]
    ends = [t + flow.duration[k][s] for k in range(3) for t in starts[k][s]]
    return [start > 0 and start not in ends]


def test_a_thousand_micro_batches_of_a_v_are_solved_on_few() -> None:
    table = solve_pipeline(PipelineProblem(16, 1000, 5, 5, 5, max_activations=32, placement="v"))
    assert table.certificate.status == "optimal"
    assert feasible(flow_of(table.problem), table.starts)
