"""Lifetimes and memory: what outlives its task, when it may go, and where it lies in the worker's arena."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence

ALIGN = 64
Instance = tuple[int, int]  # value, micro-batch (0 for a value without instances)


def aligned(size: int) -> int:
    """``size`` rounded up to the arena's alignment, at least one unit."""
    return max(ALIGN, (size + ALIGN - 1) // ALIGN * ALIGN)


def allot(spans: Mapping[Instance, tuple[int, int]], sizes: Mapping[int, int]) -> tuple[dict[Instance, int], int]:
    """Offsets for instances live over ``first..last`` items (inclusive), and the arena's size.

    Best fit in order of time: a hole that fits tightest, else the top. Holes that touch are merged.
    """
    events = sorted(spans.items(), key=lambda e: (e[1][0], -sizes[e[0][0]], e[0]))
    ends: list[tuple[int, int, int]] = []  # last item, offset, size
    holes: list[tuple[int, int]] = []  # offset, size; sorted
    offsets: dict[Instance, int] = {}
    top = peak = 0
    for instance, (first, last) in events:
        while ends and ends[0][0] < first:
            _, offset, size = ends.pop(0)
            top = _give_back(holes, offset, size, top)
        size = aligned(sizes[instance[0]])
        fitting = [(length, offset) for offset, length in holes if length >= size]
        if fitting:
            length, offset = min(fitting)
            holes.remove((offset, length))
            if length > size:
                insort(holes, (offset + size, length - size))
        else:
            offset, top = top, top + size
        offsets[instance] = offset
        insort(ends, (last, offset, size))
        peak = max(peak, top)
    return offsets, peak


def _give_back(holes: list[tuple[int, int]], offset: int, size: int, top: int) -> int:
    """Return a range to the holes; the new top if the range (and holes below) were the last of the arena."""
    for hole in list(holes):
        if hole[0] + hole[1] == offset:
            holes.remove(hole)
            offset, size = hole[0], hole[1] + size
        elif offset + size == hole[0]:
            holes.remove(hole)
            size += hole[1]
    if offset + size == top:
        return offset
    insort(holes, (offset, size))
    return top


def free_sets(last: Mapping[Instance, int], items: int) -> tuple[tuple[tuple[int, ...], ...], Sequence[int]]:
    """The distinct sets of values freed together, and for each item which set it frees (-1: none)."""
    freed: list[list[int]] = [[] for _ in range(items)]
    for (value, _), item in last.items():
        freed[item].append(value)
    sets: dict[tuple[int, ...], int] = {}
    which = [sets.setdefault(tuple(sorted(f)), len(sets)) if f else -1 for f in freed]
    return tuple(sets), which
