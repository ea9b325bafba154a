"""What a run took: tasks as measured beside tasks as planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from superscaler.ir.plan import Entry
from superscaler.ir.program import BlockKind, Lane
from superscaler.runtime.binding import program_of


@dataclass(frozen=True)
class Timing:
    """One task of a run. Microseconds; measured ones from the first start on any worker."""

    worker: int
    name: str
    kind: BlockKind
    lane: Lane
    microbatch: int
    planned_start: int
    planned_end: int
    start: float
    end: float


@dataclass(frozen=True)
class Timings:
    """``steps``: microseconds of every run so far, as the caller saw it. ``run``: of the last one, from its first start
    to its last end. ``busy``: per worker, in compute tasks of the last run."""

    steps: tuple[float, ...]
    run: float
    busy: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median step, in microseconds."""
        return median(self.steps) if self.steps else 0.0

    @staticmethod
    def of(steps: Sequence[float], trace: Sequence[Timing]) -> Timings:
        """From step times and the tasks of the last run."""
        workers = sorted({t.worker for t in trace})
        busy = tuple(sum(t.end - t.start for t in trace if t.worker == w and t.lane == "compute") for w in workers)
        return Timings(tuple(steps), max((t.end for t in trace), default=0.0), busy)


def timeline(entry: Entry, times: Sequence[Sequence[tuple[int, int]]]) -> list[Timing]:
    """``times``: per worker, start and end of every item of its Program, in nanoseconds of one clock."""
    zero = min((start for worker in times for start, _ in worker), default=0)
    found: list[Timing] = []
    for worker, measured in enumerate(times):
        program = program_of(entry, worker)
        if program is None:
            continue
        for item, (start, end) in zip(program.order, measured, strict=True):
            b = program.blocks[item.block]
            spent = (start - zero) / 1000, (end - zero) / 1000
            found.append(Timing(worker, b.name, b.kind, b.lane, item.microbatch, item.start, item.end, *spent))
    return found
