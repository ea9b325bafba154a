"""Repeating the steady state: what is checked for a few repetitions holds for any number."""

import random

import pytest

from superscaler.scheduler import certified
from superscaler.scheduler.certified import solve_pipeline
from superscaler.scheduler.flow import Flow, Starts, flow_of
from superscaler.scheduler.greedy import Policy, Tuning, greedy, tuning
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


@pytest.mark.parametrize(("devices", "microbatches", "activations"), [(8, 1000, 32), (32, 500, 128)])
def test_many_micro_batches_of_a_v_are_solved_on_few(devices: int, microbatches: int, activations: int) -> None:
    problem = PipelineProblem(2 * devices, microbatches, 5, 5, 5, max_activations=activations, placement="v")
    table = solve_pipeline(problem)
    assert table.certificate.status == "optimal"
    assert feasible(flow_of(table.problem), table.starts)


def test_out_of_time_all_micro_batches_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[int] = []

    def counted(flow: Flow, tuned: Tuning) -> Starts:
        laid_out.append(flow.microbatches)
        return greedy(flow, tuned)

    monkeypatch.setattr(certified, "greedy", counted)
    draw = random.Random(4)
    costs = [tuple(draw.randint(80, 120) for _ in range(16)) for _ in range(3)]
    table = certified.solve_pipeline(PipelineProblem(16, 300, *costs, comm=10, placement="v"), time_limit=0.0)
    assert table.status == "time_limit"
    assert feasible(flow_of(table.problem), table.starts)
    assert laid_out == [32, 300]
