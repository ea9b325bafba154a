"""Prefetching: what comes from host memory for the first tasks of the optimizer comes just in time, not at once."""

from __future__ import annotations

from collections.abc import Sequence

from superscaler.scheduler.problem import Edge, Job


def fetched_late(jobs: Sequence[Job], edges: Sequence[Edge], starts: tuple[int, ...]) -> tuple[int, ...]:
    """The starts, with transfers that wait for nothing as late as the tasks that read what they bring allow.

    They keep their order on their lane. What they bring takes memory from then on only.
    """
    waiting = {after for _, after, _ in edges}
    first = [i for i, job in enumerate(jobs) if job.kind == "transfer" and i not in waiting]
    if not first:
        return starts
    due: dict[int, int] = {}
    for before, after, delay in edges:
        due[before] = min(due.get(before, starts[after]), starts[after] - delay)
    moved = list(starts)
    busy: dict[tuple[int, str], int] = {}
    for i, job in enumerate(jobs):  # what stands behind them on their lanes
        for lane in job.lanes if job.kind == "transfer" and i in waiting else ():
            busy[lane] = min(busy.get(lane, starts[i]), starts[i])
    for i in sorted(first, key=lambda i: starts[i], reverse=True):
        until = min([due.get(i, starts[i]), *(busy[lane] for lane in jobs[i].lanes if lane in busy)])
        moved[i] = max(starts[i], until - jobs[i].duration)
        busy.update(dict.fromkeys(jobs[i].lanes, moved[i]))
    return tuple(moved)
