"""The pipeline inside an entry: what the certified pipeline solver works on, as arrays of durations and delays.

It leaves out what the entry has besides (prologue, optimizer, contention on links), so its bound holds for the entry
too; its order is a candidate for the entry's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from superscaler.scheduler.bounds import Bound
from superscaler.scheduler.constructive import Orders
from superscaler.scheduler.entry_problem import EntryProblem
from superscaler.scheduler.flow import Flow, Starts
from superscaler.scheduler.pipeline import KINDS
from superscaler.scheduler.ramps import ramp_bound
from superscaler.scheduler.stage_orders import shape_of

Memory = Mapping[int, int]
"""Bytes of arena by class of devices; a class left out is not limited."""


@dataclass(frozen=True)
class StageFlow:
    """``flow``: the stages with unlimited memory. ``tail``: the least ticks after all micro-batches."""

    entry: EntryProblem
    flow: Flow
    tail: int

    def bound(self, memory: Memory) -> Bound:
        """A lower bound on the entry's makespan: every activation counts as the smallest of its device."""
        found = ramp_bound(self.flow.with_capacity(self._capacity(memory, smallest=True)))
        return Bound(found.value + self.tail, found.source, found.binding)

    def within(self, memory: Memory, fewer: int = 0) -> Flow | None:
        """The flow with as many activations as fit if each is as large as the largest, and so many ``fewer``.

        None if those are too few.
        """
        capacity = tuple(room - fewer for room in self._capacity(memory, smallest=False))
        enough = all(room >= len(mine) for room, mine in zip(capacity, self.flow.stages_of, strict=True))
        return self.flow.with_capacity(capacity) if enough else None

    def _capacity(self, memory: Memory, *, smallest: bool) -> tuple[int, ...]:
        found: list[int] = []
        for device, mine in enumerate(self.flow.stages_of):
            held = self.entry.lasting if smallest else self.entry.most
            sizes = [held.get(s, 0) for s in mine]
            size = min(sizes) if smallest else max(sizes)
            room = memory[device] - self.entry.fixed.get(device, 0) if device in memory else None
            found.append(self.flow.capacity[device] if room is None or size == 0 else max(1, room // size))
        return tuple(found)


def stage_flow(entry: EntryProblem) -> StageFlow | None:
    """The pipeline of ``entry``, or None: stages without a regular place, without a task of each kind, that recycle,
    or that do not each hand on to the next."""
    shape = shape_of(entry)
    if shape is None or shape.microbatches == 1 or entry.passes > 1:
        return None
    at = {(j.kind, j.stage): i for i, j in enumerate(entry.jobs) if j.microbatch == 0 and j.kind in KINDS}
    if len(at) != 3 * shape.stages:
        return None
    delays = _Delays(entry)
    last = shape.stages - 1
    down = [delays.between(at["forward", s], at["forward", s + 1]) for s in range(last)]
    up = [delays.between(at["backward", s + 1], at["backward", s]) for s in range(last)]
    kept = [delays.between(at[a, s], at[b, s]) for s in range(last + 1) for a, b in (KINDS[:2], KINDS[1:])]
    if any(delay is None for delay in (*down, *up, *kept)):
        return None
    duration = tuple(tuple(entry.jobs[at[kind, s]].duration for s in range(last + 1)) for kind in KINDS)
    device = tuple(entry.jobs[at["forward", s]].device for s in range(last + 1))
    unlimited = (shape.stages * shape.microbatches,) * shape.devices
    flow = Flow(
        device, duration, (0, *(d or 0 for d in down)), (*(d or 0 for d in up), 0), unlimited, shape.microbatches
    )
    return StageFlow(entry, flow, _tail(entry, [at["weight", s] for s in range(last + 1)]))


class _Delays:
    """The ticks between two tasks of a micro-batch that one leads to through communication alone."""

    def __init__(self, entry: EntryProblem) -> None:
        self.entry = entry
        self.after = _successors(entry)

    def between(self, a: int, b: int) -> int | None:
        """The longest such way from the end of ``a`` to the start of ``b``; None if there is none."""
        found: list[int] = []
        for successor in self.after.get(a, ()):
            job = self.entry.jobs[successor]
            if successor == b:
                found.append(0)
            elif job.kind in ("send", "recv") and (rest := self.between(successor, b)) is not None:
                found.append(job.duration + rest)
        return max(found, default=None)


def _tail(entry: EntryProblem, last: Iterable[int]) -> int:
    """The least work on its own device after any of ``last``, of which one ends the micro-batches: what only it makes
    possible. Where a device has several stages, the optimizer of one may run while micro-batches of another wait."""
    after = _successors(entry)
    return min(sum(_work(entry, i, device=entry.jobs[task].device) for i in _reached(after, task)) for task in last)


def _work(entry: EntryProblem, index: int, device: int) -> int:
    """The ticks of the compute lane of ``device`` that a job takes once its micro-batches are over."""
    job = entry.jobs[index]
    late = job.kind in ("reduce", "optimizer", "collective") and entry.once(index)
    return job.duration if late and (device, "compute") in job.lanes else 0


def _successors(entry: EntryProblem) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for a, b, _ in entry.edges:
        found.setdefault(a, []).append(b)
    return found


def _reached(after: Mapping[int, Sequence[int]], task: int) -> set[int]:
    """The jobs that cannot start before ``task`` has ended."""
    found: set[int] = set()
    left = [task]
    while left:
        new = set(after.get(left.pop(), ())) - found
        found |= new
        left += new
    return found


def orders_of(flow: Flow, starts: Starts) -> Orders:
    """The steps of each device in order of start."""
    timed = sorted(
        (start, flow.device[s], (kind, s, j))
        for kind, rows in zip(KINDS, starts, strict=True)
        for s, row in enumerate(rows)
        for j, start in enumerate(row)
    )
    return [[step for _, d, step in timed if d == device] for device in range(flow.devices)]
