"""Swap and recomputation: what they buy is verified with their transfers as jobs."""

import pytest

from superscaler.errors import ScheduleError
from superscaler.scheduler.frontier import Swapping, least_bandwidth, scheduling_alone, with_relief
from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.problem import verify

V = PipelineProblem(8, 10, 5, 5, 5, placement="v")


def test_more_memory_is_never_slower() -> None:
    curve = scheduling_alone(V, (4, 5, 6, 8), effort=0.3)
    lengths = [curve[memory].makespan for memory in (4, 5, 6, 8)]
    assert lengths == sorted(lengths, reverse=True)


def test_swapping_runs_the_schedule_of_more_memory_in_less() -> None:
    curve = scheduling_alone(V, (6, 8), effort=0.3)
    point = with_relief(curve, 6, Swapping(activation=2_000_000, bandwidth=1e9, tick=1e-3))
    assert point is not None
    assert point.makespan < curve[6].makespan
    assert point.swaps > 0
    assert set(point.problem.capacity) == {6}
    verify(point.problem, point.starts)


def test_no_link_and_no_recomputation_leave_the_curve_as_it_is() -> None:
    curve = scheduling_alone(V, (5, 8), effort=0.3)
    point = with_relief(curve, 5, None, recompute=False)
    assert point is not None
    assert (point.makespan, point.swaps, point.recomputes) == (curve[5].makespan, 0, 0)


def test_the_least_bandwidth_keeps_the_bubble_and_a_slower_link_does_not() -> None:
    curve = scheduling_alone(V, (6, 8), effort=0.3)
    wanted = curve[8].bubble
    found = least_bandwidth(curve, 6, wanted, activation=10**6, tick=1e-3)
    assert found is not None
    swap, point = found
    assert point.bubble <= wanted
    slower = with_relief(curve, 6, Swapping(10**6, 10**6 / ((swap.ticks + 1) * 1e-3), 1e-3))
    assert slower is None or slower.bubble > wanted


def test_a_transfer_takes_whole_ticks() -> None:
    assert [Swapping(10, rate, 0.5).ticks for rate in (1e9, 20.0, 19.0, 5.0)] == [1, 1, 2, 4]
    for bad in ((0, 1.0, 1.0), (1, -1.0, 1.0), (1, float("nan"), 1.0), (1, 1.0, 0.0)):
        with pytest.raises(ScheduleError, match="is"):
            Swapping(*bad)
