"""Digits: how several axes split one dim without getting in each other's way.

A dim of size n is a number in mixed radix; a digit (extent, inner) of it is ``(index // inner) % extent``. Axes may
share a digit, one inside the other, as long as it has a value for each of their parts; or take digits that are
independent factors. Digits that overlap would leave some parts empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Digit = tuple[int, int]  # extent, inner
Taken = tuple[Digit, int]  # a digit, and how many ways an axis splits it


def overlap(a: Digit, b: Digit) -> bool:
    """Whether two different digits of one dim are not independent factors of it."""
    return a != b and b[1] % (a[0] * a[1]) != 0 and a[1] % (b[0] * b[1]) != 0


def room(taken: Iterable[Taken], digit: Digit, ways: int) -> bool:
    """Whether ``digit`` may be split ``ways`` ways beside those taken."""
    for other, parts in taken:
        if other == digit:
            ways *= parts
        elif overlap(other, digit):
            return False
    return ways <= digit[0]


def free(size: int, ways: int, taken: Sequence[Taken], *, contiguous: bool = False) -> Digit | None:
    """A digit of a dim of ``size`` for ``ways`` more parts: into equal parts if that can be, else the longest.

    ``contiguous``: each part must be one interval of the dim.
    """
    found = [(size, 1), *(digit for digit, _ in taken)]
    for low, high in _gaps(size, [digit for digit, _ in taken]):
        found.append((high // low, low))
        if high // low % ways == 0:
            found.append((ways, high // ways))
    fitting = [d for d in found if room(taken, d, ways) and (not contiguous or d[0] * d[1] == size)]
    even = [d for d in fitting if d[0] % (ways * _split(taken, d)) == 0]
    return min(even, default=None) or max(fitting, default=None)


def _split(taken: Iterable[Taken], digit: Digit) -> int:
    """How many ways a digit is split already."""
    ways = 1
    for other, parts in taken:
        ways *= parts if other == digit else 1
    return ways


def _gaps(size: int, digits: Sequence[Digit]) -> list[tuple[int, int]]:
    """The factors of the dim between the digits, as (first inner, its end)."""
    gaps: list[tuple[int, int]] = []
    low = 1
    for extent, inner in sorted(set(digits), key=lambda d: d[1]):
        if inner > low and inner % low == 0:
            gaps.append((low, inner))
        low = max(low, extent * inner)
    if size > low and size % low == 0:
        gaps.append((low, size))
    return gaps
