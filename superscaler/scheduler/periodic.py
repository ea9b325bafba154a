"""From a schedule of some micro-batches to one of many: a period of its steady state is repeated.

If a stretch of time holds n tasks of every kind and stage, and what follows it could as well follow it again, n more
micro-batches take one more such stretch. Where that is so is found by looking; the result is checked in full.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from superscaler.scheduler.flow import FORWARD, WEIGHT, Flow, Starts

_SPANS = (1, 2, 3, 4, 6, 8)


def extend(flow: Flow, starts: Starts, microbatches: int) -> Starts | None:
    """``starts`` of ``flow`` stretched to ``microbatches``, or None where no steady state is found."""
    extra = microbatches - flow.microbatches
    if extra == 0:
        return starts
    wide = flow.with_microbatches(microbatches)
    best: Starts | None = None
    for since, until, count in _stretches(flow, starts):
        if extra % count:
            continue
        longer = _repeat(starts, since, until, count, extra // count)
        if feasible(wide, longer) and (best is None or wide.makespan(longer) < wide.makespan(best)):
            best = longer
        if best is not None and (until - since) == count * max(flow.load):
            break
    return best


def _stretches(flow: Flow, starts: Starts) -> Iterator[tuple[int, int, int]]:
    """Stretches ``(since, until, n)`` with n tasks of every kind and stage, those of the ideal length first."""
    period = max(flow.load)
    total = flow.makespan(starts)
    for count in _SPANS:
        for middle in range(10, 90, 4):
            since = total * middle // 100 // flow.tick * flow.tick
            until = since + count * period
            if until < total and all(
                bisect_left(row, until) - bisect_left(row, since) == count for kind in starts for row in kind
            ):
                yield since, until, count


def _repeat(starts: Starts, since: int, until: int, count: int, times: int) -> Starts:
    length = until - since
    longer: Starts = []
    for kind in starts:
        rows: list[list[int]] = []
        for row in kind:
            low, high = bisect_left(row, since), bisect_left(row, until)
            middle = [start + turn * length for turn in range(1, times + 1) for start in row[low:high]]
            rows.append(row[:high] + middle + [start + times * length for start in row[high:]])
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
