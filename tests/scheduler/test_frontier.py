"""Swap and recomputation: what they buy is verified with their transfers as jobs."""

from superscaler.scheduler.frontier import scheduling_alone, with_relief
from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.problem import verify

V = PipelineProblem(8, 10, 5, 5, 5, placement="v")


def test_more_memory_is_never_slower() -> None:
    curve = scheduling_alone(V, (4, 5, 6, 8), effort=0.3)
    lengths = [curve[memory].makespan for memory in (4, 5, 6, 8)]
    assert lengths == sorted(lengths, reverse=True)


def test_swapping_runs_the_schedule_of_more_memory_in_less() -> None:
    curve = scheduling_alone(V, (6, 8), effort=0.3)
    point = with_relief(curve, 6, transfer=2)
    assert point is not None
    assert point.makespan < curve[6].makespan
    assert point.swaps > 0
    assert set(point.problem.capacity) == {6}
    verify(point.problem, point.starts)


def test_no_link_and_no_recomputation_leave_the_curve_as_it_is() -> None:
    curve = scheduling_alone(V, (5, 8), effort=0.3)
    point = with_relief(curve, 5, transfer=None, recompute=False)
    assert point is not None
    assert (point.makespan, point.swaps, point.recomputes) == (curve[5].makespan, 0, 0)
