"""Gaps: what a worker's time between its tasks goes to, when it has something to do next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from superscaler.ir.program import Program
from superscaler.runtime.execution import Execution

Times = list[tuple[int, int]]  # from when to when, in nanoseconds


@dataclass(frozen=True)
class Gap:
    """What stands before a task that computes, since the one before it: the ``posts``, items that communicate, and how
    many communications are ``finished``, because that task or those items need them to be."""

    item: int
    posts: tuple[int, ...]
    finished: int

    @property
    def key(self) -> str:
        """Gaps that take as long: so much is posted, so much finished."""
        return f"{len(self.posts)} {self.finished}"


def course(execution: Execution) -> list[Gap]:
    """The tasks that compute, in the order in which a worker comes to them, with what stands before them."""
    program, found = execution.program, list[Gap]()
    posts: list[int] = []
    finished = 0
    for item in execution.items:
        finished += len(item.waits)
        if program.blocks[program.order[item.number].block].lane != "compute":
            posts.append(item.number)
            continue
        found.append(Gap(item.number, tuple(posts), finished))
        posts, finished = [], 0
    return found


def begun(course: list[Gap], program: Program) -> list[int]:
    """The items of a Program in the order in which a worker begins them."""
    before = [number for gap in course for number in (*gap.posts, gap.item)]
    return before + sorted({*range(len(program.order))} - {*before})


def gaps(course: list[Gap], times: Times, waits: Times) -> Iterator[tuple[Gap, float]]:
    """Seconds of each gap between two tasks, without ``waits``."""
    ends = [end for _, end in waits]
    for before, gap in pairwise(course):
        start, stop = times[before.item][1], times[gap.item][0]
        inside = waits[bisect_left(ends, start) : bisect_right(ends, stop)]
        yield gap, (stop - start - sum(b - a for a, b in inside)) / 1e9
