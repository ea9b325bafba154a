"""The dims that a reshape keeps: the finest factors that both shapes are made of.

A dim is a run of digits of the row-major flat index, between two *boundaries* (products of the sizes behind it). Where
the boundaries of both shapes, sorted, divide one another, the digits between neighbours are the common factors:
``(8, 5, 12) -> (40, 3, 4)`` has boundaries 1, 4, 12, 60, 480, so it is ``b s (h d) -> (b s) h d``. Where they do not,
as in ``(6, 4) -> (4, 6)``, the digits above their least common multiple and below their greatest common divisor are
still common; what lies between is whole, and different on both sides.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd, lcm, prod

from superscaler.ir.rules.rule import Dim, Operand, Rule, Shape

_NAMES = {1: "h", 2: "bh", 3: "bsh", 4: "bshd", 5: "bshde", 6: "bshdef"}


def boundaries(shape: Shape) -> list[int]:
    """The products of the last dims, from 1 up to the number of elements; dims of size one add nothing."""
    found = [1]
    for size in reversed(shape):
        if size != 1:
            found.append(found[-1] * size)
    return found


def _between(low: int, inner: list[int], high: int) -> tuple[list[int], tuple[int, int] | None]:
    """Common boundaries strictly between two that both shapes have, and the stretch of those that is not common."""
    up, down, rest = [low], [high], list(inner)
    while rest and all(x % rest[0] == 0 for x in (*rest[1:], high)):
        up.append(rest.pop(0))
    while rest and all(rest[-1] % x == 0 for x in (*rest[:-1], up[-1])):
        down.insert(0, rest.pop())
    if not rest:
        return [*up[1:], *down[:-1]], None
    gap = (gcd(*rest, down[0]), lcm(*rest))
    return sorted({*up, *gap, *down} - {low, high}), gap


def common_boundaries(left: Shape, right: Shape) -> tuple[list[int], list[tuple[int, int]]]:
    """The boundaries of the common factors of two shapes, ascending, and the stretches within which none exist."""
    ours, theirs = set(boundaries(left)), set(boundaries(right))
    points, gaps = [1], list[tuple[int, int]]()
    for low, high in pairwise(sorted(ours & theirs)):
        inner, gap = _between(low, sorted(x for x in ours | theirs if low < x < high), high)
        points += [*inner, high]
        if gap:
            gaps.append(gap)
    return points, gaps


def _operand(shape: Shape, points: list[int], own: dict[tuple[int, int], str]) -> Operand:
    """Each dim of ``shape`` as its factors, outermost first; ``points`` are the boundaries of its factors."""
    after, found = 1, list[tuple[str, ...]]()
    for size in reversed(shape):
        inside = [p for p in points if after <= p <= after * size]
        found.append(tuple(own[pair] for pair in reversed(list(pairwise(inside)))))
        after *= size
    return tuple(reversed(found))


def reshape_rule(left: Shape, right: Shape, *, family: str = "view") -> Rule:
    """The rule of a reshape from ``left`` to ``right`` (of as many elements), exact for every pair of shapes."""
    if prod(left) == 0:
        return _empty(left, right, family)
    points, gaps = common_boundaries(left, right)
    common = [pair for pair in reversed(list(pairwise(points))) if pair not in gaps]
    letters = _NAMES.get(len(common)) or [f"d{i}" for i in range(len(common))]
    dims = {name: Dim(high // low) for name, (low, high) in zip(letters, common, strict=True)}
    operands: list[Operand] = []
    for side, shape in (("x", left), ("y", right)):
        own = dict(zip(common, letters, strict=True))
        fine = sorted({*points, *boundaries(shape)})
        for low, high in pairwise(fine):
            if (low, high) not in own:
                own[low, high] = name = f"{side}{len(dims)}"
                dims[name] = Dim(high // low, whole=True)
        operands.append(_operand(shape, fine, own))
    return Rule(family, dims, (operands[0],), (operands[1],), ((0,),))


def _empty(left: Shape, right: Shape, family: str) -> Rule:
    dims = {f"{side}{i}": Dim(n, whole=True) for side, s in (("x", left), ("y", right)) for i, n in enumerate(s)}
    ins, outs = (tuple((f"{side}{i}",) for i in range(len(s))) for side, s in (("x", left), ("y", right)))
    return Rule(family, dims, (ins,), (outs,), ((0,),))
