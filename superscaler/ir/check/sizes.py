"""Sizes of parts: how long a split digit becomes, how many bytes a part of a tensor has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import product
from math import prod

from superscaler.ir.graph import ITEMSIZE, Tensor
from superscaler.ir.layout import Axis, Layout, Shard, Space

Digit = tuple[int, int, int]  # dim, extent, inner
MAX_ENUMERATED = 65536


def digit_of(shard: Shard) -> Digit:
    """The digit that a shard splits: its dim, extent and inner size."""
    return shard.dim, shard.extent, shard.inner


@lru_cache(maxsize=65536)
def digits(layout: Layout) -> tuple[tuple[Digit, tuple[str, ...]], ...]:
    """The digits that a layout splits, each with its axes, outermost first."""
    found: dict[Digit, list[str]] = {}
    for name, state in layout.states:
        if isinstance(state, Shard):
            found.setdefault(digit_of(state), []).append(name)
    return tuple((digit, tuple(axes)) for digit, axes in found.items())


def overlap(a: Digit, b: Digit) -> bool:
    """Whether two digits of one dim are not independent factors of it."""
    return a[0] == b[0] and a[2] % (b[1] * b[2]) != 0 and b[2] % (a[1] * a[2]) != 0


def part_lengths(length: int, axis: Axis, index: int | None) -> set[int]:
    """The lengths of the parts of an interval: of part ``index``, or of all."""
    if axis.sizes is not None and sum(axis.sizes) == length:
        return {axis.sizes[index]} if index is not None else set(axis.sizes)
    each, more = divmod(length, axis.ways)
    if index is not None:
        return {each + (index < more)}
    return {each, each + 1} if more else {each}


def lengths(space: Space, extent: int, axes: Iterable[str], coords: Mapping[str, int]) -> set[int]:
    """The lengths that parts of a digit have when ``axes`` split it; axes without a coordinate take every index."""
    found = {extent}
    for name in axes:
        axis = space.axis(name)
        found = {part for length in found for part in part_lengths(length, axis, coords.get(name))}
    return found


def even(space: Space, layout: Layout) -> bool:
    """Whether all parts of a layout have one size."""
    return _even(space, layout)


@lru_cache(maxsize=65536)
def _even(space: Space, layout: Layout) -> bool:
    split = digits(layout)
    apart = not any(overlap(split[i][0], split[j][0]) for i in range(len(split)) for j in range(i))
    return apart and all(len(lengths(space, digit[1], axes, {})) == 1 for digit, axes in split)


def largest(space: Space, shape: tuple[int, ...], layout: Layout, coords: Mapping[str, int]) -> int:
    """Elements of the largest part at ``coords``; axes not in ``coords`` (time) take every index."""
    split = digits(layout)
    if any(overlap(split[i][0], split[j][0]) for i in range(len(split)) for j in range(i)):
        return _enumerated(space, shape, layout, coords)
    volume = prod(shape)
    for (_, extent, _), axes in split:
        volume = volume // extent * max(lengths(space, extent, axes, coords)) if extent else 0
    return volume


def _enumerated(space: Space, shape: tuple[int, ...], layout: Layout, coords: Mapping[str, int]) -> int:
    free = [name for name, state in layout.states if isinstance(state, Shard) and name not in coords]
    if prod(space.axis(a).ways for a in free) > MAX_ENUMERATED:
        return prod(shape)
    every = product(*(range(space.axis(a).ways) for a in free))
    return max(space.region(shape, layout, {**coords, **dict(zip(free, i, strict=True))}).volume for i in every)


class PartSizes:
    """Bytes of the largest part that any of some workers holds, over all time indices."""

    def __init__(self, space: Space, workers: tuple[int, ...]) -> None:
        self.space = space
        self.workers = workers
        self._known: dict[tuple[tuple[int, ...], Layout], int] = {}

    def bytes(self, tensor: Tensor, layout: Layout) -> int:
        """``layout``'s mesh holds all of the workers."""
        key = (tensor.shape, layout)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._elements(*key)
        return found * ITEMSIZE[tensor.dtype]

    def _elements(self, shape: tuple[int, ...], layout: Layout) -> int:
        if even(self.space, layout):
            return largest(self.space, shape, layout, {})
        mesh = self.space.mesh(layout.mesh)
        used = [name for name, _ in layout.states if name in mesh.axes]
        places = {tuple(mesh.coords(w)[a] for a in used) for w in self.workers}
        return max(largest(self.space, shape, layout, dict(zip(used, place, strict=True))) for place in places)
