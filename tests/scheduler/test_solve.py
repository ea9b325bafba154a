"""solve(): what it returns is valid, its certificate true, and its limits are kept."""

import pytest

from superscaler.errors import InfeasiblePlan, ScheduleError
from superscaler.scheduler import Job, Problem, solve, verify


def chain(*durations: int, device: int = 0) -> tuple[Job, ...]:
    return tuple(Job(device, "forward", s, 0, d, ((device, "compute"),)) for s, d in enumerate(durations))


def test_a_chain_takes_the_sum_of_its_durations_and_delays() -> None:
    table = solve(Problem(chain(3, 4), ((0, 1, 2),), (None,)))
    assert table.starts == (0, 5)
    assert (table.certificate.status, table.makespan, table.certificate.gap) == ("optimal", 9, 0.0)


def test_two_lanes_at_once_are_both_held() -> None:
    both = Job(0, "reduce", 0, 0, 5, ((0, "compute"), (1, "compute")))
    one = Job(1, "forward", 1, 0, 5, ((1, "compute"),))
    table = solve(Problem((both, one), (), (None, None)))
    verify(table.problem, table.starts)
    assert table.makespan == 10


def test_memory_holds_jobs_back() -> None:
    lanes = [((0, f"lane{i}"),) for i in range(2)]
    jobs = tuple(Job(0, "forward", i, 0, 4, lanes[i], acquire=3, release=3) for i in range(2))
    assert solve(Problem(jobs, (), (6,))).makespan == 4
    assert solve(Problem(jobs, (), (5,))).makespan == 8


def test_a_job_that_no_memory_holds_is_named() -> None:
    with pytest.raises(InfeasiblePlan, match="device 0"):
        solve(Problem((Job(0, "forward", 0, 0, 1, ((0, "compute"),), acquire=3),), (), (2,)))


def test_a_cycle_is_printed() -> None:
    with pytest.raises(ScheduleError, match="cycle") as caught:
        solve(Problem(chain(1, 1, 1), ((0, 1, 0), (1, 2, 0), (2, 1, 0)), (None,)))
    assert [line.count("stage") for line in caught.value.details] == [1, 1, 1]


def test_a_limit_too_short_for_any_search_returns_the_constructive_schedule() -> None:
    jobs = [Job(0, "forward", 0, 0, 5, ((0, "a"),)), Job(0, "forward", 1, 0, 5, ((0, "a"), (0, "b")))]
    jobs += [Job(0, "forward", 2 + i, 0, 3, ((0, "b"),)) for i in range(3)]
    table = solve(Problem(tuple(jobs), ((2, 1, 0),), (None,)), time_limit=0.0)
    assert table.certificate.status in ("time_limit", "optimal")
    verify(table.problem, table.starts)
