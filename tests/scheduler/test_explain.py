"""Reasons: the change that is named makes the problem feasible, and nothing smaller of its sort does."""

import pytest

from superscaler.errors import InfeasiblePlan
from superscaler.scheduler import Job, Problem, solve
from superscaler.scheduler.explain import fits, recompute, smallest_changes


def forwards_then_backwards(count: int, capacity: int) -> Problem:
    """One device, ``count`` micro-batches of two units each; a barrier makes all forwards precede all backwards."""
    lane = ((0, "compute"),)
    jobs = [Job(0, "forward", 0, j, 2, lane, acquire=2) for j in range(count)]
    jobs += [Job(0, "backward", 0, j, 2, lane, release=2) for j in range(count)]
    edges = [(i, count + j, 0) for i in range(count) for j in range(count)]
    return Problem(tuple(jobs), tuple(edges), (capacity,))


def test_memory_micro_batches_and_recompute_are_each_offered() -> None:
    problem = forwards_then_backwards(4, 5)
    assert not fits(problem)
    texts = [change.text for change in smallest_changes(problem)]
    assert texts == ["8 units of memory on device 0", "2 micro-batches instead of 4", "recompute stage 0"]
    assert all(fits(change.problem) for change in smallest_changes(problem))


def test_the_error_names_the_limits_in_conflict() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        solve(forwards_then_backwards(4, 5))
    assert "limits in conflict: memory[0]=5, microbatches=4" in str(caught.value)
    assert caught.value.hint is not None


def test_recompute_gives_memory_back_and_takes_it_again() -> None:
    table = solve(recompute(forwards_then_backwards(4, 3), 0))
    assert table.makespan == 4 * (2 + 2 + 2)
