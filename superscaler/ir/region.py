"""Regions: which elements of a tensor are meant, as a product over its dims of unions of intervals.

One rectangle is not enough: a shard of a fused QKV weight is three intervals, a sequence split behind a reshape is a
comb. A :class:`Span` is the canonical (sorted, merged) union of intervals of one dim, so equality is syntactic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import prod

Interval = tuple[int, int]


class Span(tuple[Interval, ...]):
    """Sorted, disjoint, merged half-open intervals ``(start, stop)`` of one dim."""

    __slots__ = ()

    @staticmethod
    def of(intervals: Iterable[Interval]) -> Span:
        """The union of half-open intervals, in any order, overlapping or empty ones too."""
        merged: list[Interval] = []
        for start, stop in sorted(intervals):
            if stop <= start:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return Span(merged)

    @staticmethod
    def full(size: int) -> Span:
        """All of a dim of ``size``."""
        return Span(((0, size),)) if size else Span()

    @property
    def size(self) -> int:
        """How many indices it has."""
        return sum(stop - start for start, stop in self)

    @property
    def start(self) -> int:
        """Its first index; 0 if it is empty."""
        return self[0][0] if self else 0

    @property
    def contiguous(self) -> bool:
        """Whether it is one interval, or none."""
        return len(self) <= 1

    def __and__(self, other: Span) -> Span:
        return _intersect(self, other)

    def __str__(self) -> str:
        return ",".join(f"{start}:{stop}" for start, stop in self) or "-"

    def within(self, other: Span) -> bool:
        """Whether ``other`` has all of its indices."""
        return _intersect(self, other) == self

    def relative_to(self, base: Span) -> Span:
        """This span (a subset of ``base``) in the coordinates of a buffer that holds ``base`` packed."""
        out: list[Interval] = []
        offset = 0
        for start, stop in base:
            for low, high in _intersect(self, Span(((start, stop),))):
                out.append((offset + low - start, offset + high - start))
            offset += stop - start
        return Span.of(out)


@lru_cache(maxsize=65536)
def _intersect(left: Span, right: Span) -> Span:
    out: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, stop = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < stop:
            out.append((start, stop))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return Span(out)


class Region(tuple[Span, ...]):
    """A product of spans, one per dim; a scalar's region is the empty product."""

    __slots__ = ()

    @staticmethod
    def full(shape: Iterable[int]) -> Region:
        """All of a tensor of ``shape``."""
        return Region(Span.full(size) for size in shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the packed buffer that holds it."""
        return tuple(span.size for span in self)

    @property
    def volume(self) -> int:
        """How many elements it has."""
        return prod(span.size for span in self)

    @property
    def empty(self) -> bool:
        """Whether it has no element."""
        return any(not span for span in self)

    def __and__(self, other: Region) -> Region:
        return Region(a & b for a, b in zip(self, other, strict=True))

    def within(self, other: Region) -> bool:
        """Whether ``other``, of the same rank, has all of its elements."""
        return all(a.within(b) for a, b in zip(self, other, strict=True))

    def relative_to(self, base: Region) -> Region:
        """This region (a subset of ``base``) in the coordinates of a buffer that holds ``base`` packed."""
        return Region(a.relative_to(b) for a, b in zip(self, base, strict=True))

    def __str__(self) -> str:
        return "[" + "; ".join(str(span) for span in self) + "]"


@lru_cache(maxsize=65536)
def digit_span(size: int, extent: int, inner: int, start: int, stop: int) -> Span:
    """The elements of a dim of ``size`` whose digit ``(index // inner) % extent`` lies in ``start:stop``.

    A dim that merges several factors (batch × sequence, or three × heads × head size) is split along one of them.
    """
    period = extent * inner
    return Span.of((base + start * inner, base + stop * inner) for base in range(0, size, period))


def tiles(parts: Iterable[Region], whole: Region) -> bool:
    """Whether ``parts`` cover ``whole`` exactly once (they are pairwise disjoint and fill it)."""
    seen = list(parts)
    if any(not part.within(whole) for part in seen):
        return False
    if sum(part.volume for part in seen) != whole.volume:
        return False
    return all((seen[i] & seen[j]).empty or (seen[i] & seen[j]).volume == 0 for i in range(len(seen)) for j in range(i))


def boxes(region: Region) -> Iterator[tuple[Interval, ...]]:
    """The rectangles of a region, in row-major order."""

    def walk(dim: int, prefix: tuple[Interval, ...]) -> Iterator[tuple[Interval, ...]]:
        if dim == len(region):
            yield prefix
            return
        for interval in region[dim]:
            yield from walk(dim + 1, (*prefix, interval))

    yield from walk(0, ())
