"""A part of an op: which stretch of each of its dims it computes, and where its first output lies in the whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from zlib import crc32

import msgspec

from superscaler.ir.graph import Op
from superscaler.ir.layout import Shard, Space
from superscaler.ir.region import Region
from superscaler.ir.rules.rule import Rule, Shape, Splits, split_state


class Part(msgspec.Struct, frozen=True):
    """What the placeholders of an op's arguments stand for in one part of it.

    Per dim of the op: ``local`` length, ``start`` (first index) and ``size`` (whole length). ``shape`` and ``region``
    are those of the first output. ``seed`` is (seed, step) of the run, set by the runtime; ``key`` tells ops apart for
    randomness: that of the forward op for its gradient too.
    """

    local: dict[str, int] = {}
    start: dict[str, int] = {}
    size: dict[str, int] = {}
    shape: Shape = ()
    region: Region = Region()
    seed: tuple[int, int] = (0, 0)
    key: int = 0

    def whole(self, dim: str) -> bool:
        """Whether the part has all of a dim."""
        return self.local[dim] == self.size[dim]


def op_key(op: Op) -> int:
    """The number that an op's random draws depend on; an op and the forward op it links to have the same."""
    return crc32((op.link or op.name).encode())


def part_of_op(rule: Rule, op: Op, splits: Splits, space: Space, coords: Mapping[str, int], out_shape: Shape) -> Part:
    """The part of ``op`` at ``coords`` (axis -> index) under ``splits``; ``out_shape`` is that of output 0, whole."""
    at = tuple((axis, coords[axis]) for axis, _ in splits)
    local, start, size = _extents(tuple((n, d.size) for n, d in rule.dims.items()), splits, at, space)
    region = Region()
    if rule.outs:
        states = {axis: split_state(rule, split, output=True, index=0) for axis, split in splits}
        region = space.region(out_shape, space.layout("", states), coords)
    return Part(local, start, size, region.shape, region, key=op_key(op))


@lru_cache(maxsize=65536)
def _extents(
    dims: tuple[tuple[str, int], ...], splits: Splits, at: tuple[tuple[str, int], ...], space: Space
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    coords = dict(at)
    local: dict[str, int] = {}
    start: dict[str, int] = {}
    for name, size in dims:
        states = {axis: Shard(0, s.extent, s.inner) for axis, s in splits if s.dim == name}
        (span,) = space.region((size,), space.layout("", states), coords)
        local[name], start[name] = span.size, span.start
    return local, start, dict(dims)
