"""Shorter ramps for a schedule of unit tasks without delays: every task moves to the first idle slot that it may have.

First all tasks as they are, then, where the pipeline drains, forwards and backwards as if weight gradients took no
place, which then fill the idle slots, oldest first (after the "reordering" of Qi et al. 2024, Pipeline Parallelism with
Controllable Memory). Memory is never exceeded, no task moves later, so no schedule gets longer.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

from superscaler.scheduler.flow import BACKWARD, FORWARD, WEIGHT, Flow, Starts
from superscaler.scheduler.periodic import feasible


def squeeze(flow: Flow, starts: Starts) -> Starts:
    """``starts`` of ``flow``, whose tasks all take one tick, with its tasks in earlier slots where there are any."""
    now = _all_earlier(flow, _all_earlier(flow, starts))
    drained = _drained_earlier(flow, now)
    if not feasible(flow, drained):
        return now
    return min(_all_earlier(flow, drained), now, key=flow.makespan)


def _all_earlier(flow: Flow, starts: Starts) -> Starts:
    """One pass over all tasks in order of time."""
    now = _copy(starts)
    length = flow.makespan(now) + 1
    used = [{t for kind in now for s in mine for t in kind[s]} for mine in flow.stages_of]
    level = [[0] * length for _ in range(flow.devices)]
    for s, d in enumerate(flow.device):
        for begin, end in zip(now[FORWARD][s], now[WEIGHT][s], strict=True):
            _hold(level[d], begin, end + 1, 1)
    for old, kind, s, j in _in_order(now, (FORWARD, BACKWARD, WEIGHT)):
        d = flow.device[s]
        first = _ready(flow, now, kind, s, j)
        if kind == FORWARD:
            full = (t for t in range(old - 1, first - 1, -1) if level[d][t] >= flow.capacity[d])
            first = next(full, first - 1) + 1
        new = next((t for t in range(first, old) if t not in used[d]), old)
        now[kind][s][j] = new
        used[d].remove(old)
        used[d].add(new)
        if kind == FORWARD:
            _hold(level[d], new, old, 1)
        if kind == WEIGHT:
            _hold(level[d], new + 1, old + 1, -1)
    return now


def _drained_earlier(flow: Flow, starts: Starts) -> Starts:
    """Forwards and backwards after the last forward of the first stage in the slots of weight gradients too."""
    now = _copy(starts[:WEIGHT])
    used = [{t for kind in now for s in mine for t in kind[s]} for mine in flow.stages_of]
    last = now[FORWARD][0][-1]
    for old, kind, s, j in _in_order(now, (FORWARD, BACKWARD)):
        d = flow.device[s]
        for new in range(_ready(flow, now, kind, s, j), old if old > last else 0):
            if new in used[d]:
                continue
            now[kind][s][j] = new
            used[d] ^= {old, new}
            if _fits(flow, now, d):
                break
            now[kind][s][j] = old
            used[d] ^= {old, new}
    return [*now, _weights(flow, now)]


def _fits(flow: Flow, starts: Starts, d: int) -> bool:
    """Whether memory of device d is enough if every idle slot is given to a weight gradient that waits."""
    takes = {t for s in flow.stages_of[d] for t in starts[FORWARD][s]}
    waits = {t for s in flow.stages_of[d] for t in starts[BACKWARD][s]}
    live = waiting = 0
    for t in range(max(*takes, *waits) + 1):
        if t in takes:
            live += 1
            if live > flow.capacity[d]:
                return False
        elif t in waits:
            waiting += 1
        elif waiting:
            waiting, live = waiting - 1, live - 1
    return True


def _weights(flow: Flow, starts: Starts) -> list[list[int]]:
    """Weight gradients in the idle slots, oldest input gradient first."""
    found = [[0] * flow.microbatches for _ in range(flow.stages)]
    for mine in flow.stages_of:
        busy = {t for kind in starts for s in mine for t in kind[s]}
        todo = deque(sorted((t, s, j) for s in mine for j, t in enumerate(starts[BACKWARD][s])))
        slot = 0
        while todo:
            if slot not in busy and todo[0][0] < slot:
                _, s, j = todo.popleft()
                found[s][j] = slot
            slot += 1
    return found


def _ready(flow: Flow, starts: Starts, kind: int, s: int, j: int) -> int:
    """The first slot after everything that the task waits for, and after the same task of the micro-batch before."""
    waits = [starts[k][q][i] for (k, q, i), _ in flow.predecessors((kind, s, j))]
    return max((*waits, starts[kind][s][j - 1] if j else -1), default=-1) + 1


def _in_order(starts: Starts, kinds: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(start, kind, stage, micro-batch) of all tasks, as they stand."""
    found = (((t, k, s, j) for j, t in enumerate(row)) for k in kinds for s, row in enumerate(starts[k]))
    return sorted(chain.from_iterable(found))


def _hold(level: list[int], begin: int, end: int, change: int) -> None:
    for t in range(begin, end):
        level[t] += change


def _copy(starts: Starts) -> Starts:
    return [[list(row) for row in kind] for kind in starts]
