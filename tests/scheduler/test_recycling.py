"""3F1B: several forwards and one backward per micro-batch, in steady state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.errors import UsageError
from superscaler.scheduler.constructive import Orders, Shape, dependencies, orders
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Job, Problem, makespan
from superscaler.scheduler.recycling import BACKWARD, FORWARD


def length(shape: Shape, found: Orders) -> int:
    """The makespan under the orders, with the costs that they were made for."""
    ticks = {"backward": BACKWARD, "weight": 0}
    steps = [(device, step) for device, each in enumerate(found) for step in each]
    index = {step: i for i, (_, step) in enumerate(steps)}
    jobs = tuple(Job(d, k, s, j, ticks.get(k, FORWARD), ((d, "compute"),)) for d, (k, s, j) in steps)
    edges = tuple((index[a], index[b], 0) for j in range(shape.microbatches) for a, b in dependencies(shape, j))
    problem = Problem(jobs, edges, (None,) * shape.devices)
    turns = {(d, "compute"): [index[step] for step in each] for d, each in enumerate(found)}
    return makespan(problem, list_schedule(problem, turns))


@pytest.mark.parametrize(("devices", "microbatches", "passes"), [
    (2, 4, 3), (4, 6, 3), (4, 8, 3), (4, 16, 3), (4, 32, 3), (8, 32, 3), (4, 16, 2), (4, 16, 4),
])  # fmt: skip
def test_no_device_waits_once_the_last_has_begun(devices: int, microbatches: int, passes: int) -> None:
    """(P-1)(F+B) + M(nF+B): the last device's work, after the way to it and before the way back."""
    shape = Shape(devices, devices, microbatches, passes=passes)
    least = (devices - 1) * (FORWARD + BACKWARD) + microbatches * (passes * FORWARD + BACKWARD)
    assert length(shape, orders("3f1b", shape)) == least


def test_a_long_run_holds_no_more_micro_batches_than_a_short_one() -> None:
    """A steady state: what is under way does not grow with the number of micro-batches."""

    def most_under_way(microbatches: int) -> int:
        level = most = 0
        for kind, _, _ in orders("3f1b", Shape(4, 4, microbatches, passes=3))[0]:
            level += (kind == "forward1") - (kind == "backward")
            most = max(most, level)
        return most

    assert most_under_way(16) == most_under_way(64) <= 9


@given(st.integers(1, 5), st.integers(1, 12), st.integers(2, 4))
def test_it_is_shorter_than_flushed_phases(devices: int, microbatches: int, passes: int) -> None:
    shape = Shape(devices, devices, microbatches, passes=passes)
    flushed = (microbatches + devices - 1) * (passes * FORWARD + BACKWARD)
    assert length(shape, orders("3f1b", shape)) <= flushed


@pytest.mark.parametrize(("name", "passes", "says"), [("3f1b", 1, "several forwards"), ("1f1b", 3, "one forward")])
def test_schedules_for_another_number_of_passes_are_refused(name: str, passes: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        orders(name, Shape(2, 2, 4, passes=passes))
