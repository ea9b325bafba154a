"""Gaps: what a worker's time between its tasks goes to, when it has something to do next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from superscaler.ir.program import Program
from superscaler.runtime.execution import Execution

Times = list[tuple[int, int]]  # from when to when, in nanoseconds


def gaps(execution: Execution, times: Times, waits: Times) -> Iterator[float]:
    """Seconds for each communication that stands between two tasks that compute, without ``waits``."""
    program, before, posted = execution.program, None, 0
    ends = [end for _, end in waits]
    for number in (item.number for item in execution.items):
        if not _computes(program, number):
            posted += 1
            continue
        if before is not None and posted:
            start, stop = times[before][1], times[number][0]
            inside = waits[bisect_left(ends, start) : bisect_right(ends, stop)]
            yield (stop - start - sum(b - a for a, b in inside)) / 1e9 / posted
        before, posted = number, 0


def _computes(program: Program, number: int) -> bool:
    return program.blocks[program.order[number].block].lane == "compute"
