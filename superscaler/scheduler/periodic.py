"""From a schedule of some micro-batches to one of many: a period of its steady state is repeated.

If a stretch of time holds n tasks of every kind and stage, and what follows it could as well follow it again, n more
micro-batches take one more such stretch. Where that is so is found by looking, and checked with so many repetitions
that they outlast every activation: tasks that constrain each other are never further apart, so what holds there holds
for any number of them. The starts of all micro-batches are written only when somebody asks for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from superscaler.scheduler.flow import FORWARD, WEIGHT, Flow, Starts

_SPANS = (1, 2, 3, 4, 5, 6, 8, 10)
ALL_SPANS = 120
"""A multiple of every number of micro-batches that a repeated stretch may hold."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The time ``[since, until)`` in which ``count`` micro-batches pass every task once."""

    since: int
    until: int
    count: int

    @property
    def length(self) -> int:
        return self.until - self.since


@dataclass(frozen=True, slots=True)
class Course:
    """A schedule of few micro-batches and the stretch that is repeated ``times`` more to make one of many."""

    starts: Starts
    length: int
    stretch: Stretch | None = None
    times: int = 0

    @property
    def makespan(self) -> int:
        return self.length + (self.times * self.stretch.length if self.stretch else 0)

    def expand(self) -> Starts:
        """The starts of all micro-batches, by kind and stage."""
        return self.starts if self.stretch is None else _repeat(self.starts, self.stretch, self.times)


def extend(flow: Flow, starts: Starts, microbatches: int) -> Course | None:
    """``starts`` of ``flow`` stretched to ``microbatches``, or None where no steady state is found."""
    extra = microbatches - flow.microbatches
    if extra == 0:
        return Course(starts, flow.makespan(starts))
    best: Course | None = None
    for stretch in _stretches(flow, starts):
        if extra % stretch.count:
            continue
        course = Course(starts, flow.makespan(starts), stretch, extra // stretch.count)
        if (best is None or course.makespan < best.makespan) and _holds(flow, course):
            best = course
        if best is not None and stretch.length == stretch.count * max(flow.load):
            break
    return best


def _holds(flow: Flow, course: Course) -> bool:
    """Whether the course is feasible, for as many repetitions as outlast every activation."""
    starts, stretch = course.starts, course.stretch
    if stretch is None:
        return feasible(flow, starts)
    lives = (w - f for s in range(flow.stages) for f, w in zip(starts[FORWARD][s], starts[WEIGHT][s], strict=True))
    enough = min(course.times, 2 + max(lives) // stretch.length)
    wide = flow.with_microbatches(flow.microbatches + enough * stretch.count)
    return feasible(wide, _repeat(starts, stretch, enough))


def _stretches(flow: Flow, starts: Starts) -> Iterator[Stretch]:
    """Stretches at the pace of the busiest device, short ones first."""
    period = max(flow.load)
    total = flow.makespan(starts)
    for count in _SPANS:
        for middle in range(10, 90, 4):
            since = total * middle // 100 // flow.tick * flow.tick
            until = since + count * period
            if until < total and all(
                bisect_left(row, until) - bisect_left(row, since) == count for kind in starts for row in kind
            ):
                yield Stretch(since, until, count)


def _repeat(starts: Starts, stretch: Stretch, times: int) -> Starts:
    shift = times * stretch.length
    turns = range(stretch.length, shift + 1, stretch.length)
    longer: Starts = []
    for kind in starts:
        rows: list[list[int]] = []
        for row in kind:
            low, high = bisect_left(row, stretch.since), bisect_left(row, stretch.until)
            middle = [start + turn for turn in turns for start in row[low:high]]
            rows.append([*row[:high], *middle, *(start + shift for start in row[high:])])
        longer.append(rows)
    return longer


def feasible(flow: Flow, starts: Starts) -> bool:
    """Whether ``starts`` keeps every dependency, lane and memory of ``flow``."""
    return _ordered(flow, starts) and all(_device(flow, starts, d) for d in range(flow.devices))


def _ordered(flow: Flow, starts: Starts) -> bool:
    for kind in range(3):
        for s in range(flow.stages):
            row = starts[kind][s]
            if len(row) != flow.microbatches or row[0] < 0:
                return False
            for (k, q, _), delay in flow.predecessors((kind, s, 0)):
                wait = flow.duration[k][q] + delay
                if any(start < before + wait for start, before in zip(row, starts[k][q], strict=True)):
                    return False
    return True


def _device(flow: Flow, starts: Starts, d: int) -> bool:
    """One device: tasks in order of start do not overlap, and no forward finds memory full."""
    tasks = sorted(
        (start, flow.duration[kind][s], kind)
        for kind in range(3)
        for s in flow.stages_of[d]
        for start in starts[kind][s]
    )
    end = live = 0
    for start, duration, kind in tasks:
        live += (kind == FORWARD) - (kind == WEIGHT)
        if start < end or live > flow.capacity[d]:
            return False
        end = start + duration
    return True
