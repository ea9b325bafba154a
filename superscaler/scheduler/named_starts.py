"""The named schedules as schedules of one pipeline's costs: solving never ends in a longer one than asking by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from superscaler.scheduler.constructive import Orders, Shape, check, orders, schedules
from superscaler.scheduler.flow import Flow, Starts, Task
from superscaler.scheduler.pipeline import KINDS

MOST_TASKS = 4000
"""Of more tasks than that no named schedule is made: greedy ones cost less, and are longer only by chance."""


def named_orders(shape: Shape, limits: Sequence[int | None], stop: Callable[[], bool]) -> Iterator[tuple[str, Orders]]:
    """Name and orders of each registered schedule that goes with ``shape`` and holds no more activations than may be.

    One that a user has registered may fail in any way on shapes that it is not made for: it is left out.
    """
    for name, schedule in schedules().items():
        if stop():
            break
        if shape.placement not in schedule.placements or (schedule.passes > 1) != (shape.passes > 1):
            continue
        try:
            found = orders(name, shape)
            check(shape, found, limits)
        except Exception:
            continue
        yield name, found


def named_starts(flow: Flow, stop: Callable[[], bool]) -> Iterator[tuple[str, Starts]]:
    """Name and schedule of ``flow`` for each of them until ``stop``; none of too many tasks, or irregular places."""
    shape = Shape.of(flow.device, flow.microbatches)
    if shape is not None and flow.tasks < MOST_TASKS:
        for name, found in named_orders(shape, flow.capacity, stop):
            yield name, in_turn(flow, [[(KINDS.index(kind), s, j) for kind, s, j in steps] for steps in found])


def in_turn(flow: Flow, turns: Sequence[Sequence[Task]]) -> Starts:
    """Every task of each device in its turn, as early as can be; ``turns`` are acyclic and name every task once."""
    ends: dict[Task, int] = {}
    starts: Starts = [[[0] * flow.microbatches for _ in range(flow.stages)] for _ in KINDS]
    turn, free = [0] * flow.devices, [0] * flow.devices
    awake = deque(range(flow.devices))
    while awake:
        d = awake.popleft()
        while turn[d] < len(turns[d]):
            kind, s, j = task = turns[d][turn[d]]
            waits = [(ends.get(before), delay) for before, delay in flow.predecessors(task)]
            arrivals = [end + delay for end, delay in waits if end is not None]
            if len(arrivals) < len(waits):
                break
            starts[kind][s][j] = max(free[d], *arrivals, 0)
            ends[task] = free[d] = starts[kind][s][j] + flow.duration[kind][s]
            turn[d] += 1
            awake.extend(e for (_, q, _), _ in flow.successors(task) if (e := flow.device[q]) != d)
    return starts
