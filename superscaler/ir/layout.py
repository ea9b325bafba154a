"""Layouts: how a logical tensor lies on a mesh of devices and over time, one state per axis.

An :class:`Axis` is one way of splitting: over devices (``space``: data, tensor, …) or over time on the same devices
(``time``: micro-batches, co-shards). Per axis a tensor is split along a digit of a dim (:class:`Shard`), *partial*
(:class:`Partial`: every part holds a value that must be combined), or the same everywhere (absent). Axes are ordered:
those that split the same digit nest, inner axes inside outer shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Literal

import msgspec

from superscaler.ir.region import Region, Span, digit_span

PartialKind = Literal["sum", "max", "min", "logsumexp"]


class Axis(msgspec.Struct, frozen=True):
    """One way of splitting. ``sizes``: explicit uneven parts of the digit it splits; else parts are balanced."""

    name: str
    ways: int
    kind: Literal["space", "time"]
    sizes: tuple[int, ...] | None = None


class Shard(msgspec.Struct, frozen=True, tag="shard"):
    """Split along the digit ``(index // inner) % extent`` of dim ``dim``. A plain dim of size n is ``(dim, n, 1)``."""

    dim: int
    extent: int
    inner: int = 1

    def __str__(self) -> str:
        return f"S{self.dim}" + (f"({self.extent}/{self.inner})" if self.inner != 1 else f"({self.extent})")


class Partial(msgspec.Struct, frozen=True, tag="partial"):
    """Each part along the axis holds a term; the complete value is their reduction of this kind."""

    kind: PartialKind = "sum"

    def __str__(self) -> str:
        return f"P({self.kind})"


State = Shard | Partial


class Mesh(msgspec.Struct, frozen=True, dict=True):
    """Devices as a row-major array over space axes. ``axes`` are axis names, ``ways`` their sizes."""

    name: str
    axes: tuple[str, ...]
    ways: tuple[int, ...]
    devices: tuple[int, ...]

    def coords(self, device: int) -> dict[str, int]:
        """The coordinates of a device along the mesh's axes."""
        return _mesh_coords(self)[device]

    def lines(self, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The groups of devices that differ only along ``axes``, each in row-major order of those axes."""
        return _mesh_lines(self, axes)

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.axes, self.ways, self.devices))

    def __hash__(self) -> int:  # a mesh is a key in many tables, and may have thousands of devices
        return self._hash


@lru_cache(maxsize=4096)
def _mesh_coords(mesh: Mesh) -> dict[int, dict[str, int]]:
    indices = product(*(range(w) for w in mesh.ways))
    return {d: dict(zip(mesh.axes, index, strict=True)) for d, index in zip(mesh.devices, indices, strict=True)}


@lru_cache(maxsize=4096)
def _mesh_lines(mesh: Mesh, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for device in mesh.devices:
        at = mesh.coords(device)
        groups.setdefault(tuple(v for k, v in at.items() if k not in axes), []).append(device)
    return tuple(tuple(group) for group in groups.values())


class Layout(msgspec.Struct, frozen=True):
    """Where (``mesh``, by name) and how (``states``, sorted by axis order; axes not named are replicated)."""

    mesh: str
    states: tuple[tuple[str, State], ...] = ()

    def state(self, axis: str) -> State | None:
        """How the value lies along an axis; None: whole on each of its devices."""
        for name, state in self.states:
            if name == axis:
                return state
        return None

    def without(self, *axes: str) -> Layout:
        """The layout in which the value is whole along ``axes``."""
        return Layout(self.mesh, tuple(s for s in self.states if s[0] not in axes))

    @property
    def partial(self) -> tuple[str, ...]:
        """The axes along which the value is partial."""
        return tuple(name for name, state in self.states if isinstance(state, Partial))

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={state}" for name, state in self.states)
        return f"{self.mesh}{{{inside}}}"


class Space(msgspec.Struct, frozen=True, dict=True):
    """The axes (outermost first) and meshes that the layouts of one entry refer to."""

    axes: tuple[Axis, ...]
    meshes: tuple[Mesh, ...]

    def axis(self, name: str) -> Axis:
        """The axis of this name. Raises KeyError for an unknown one."""
        return _axes(self)[name]

    def mesh(self, name: str) -> Mesh:
        """The mesh of this name. Raises KeyError for an unknown one."""
        return _meshes(self)[name]

    def rank(self, axis: str) -> int:
        """The position of an axis in the nesting order."""
        return _ranks(self)[axis]

    @cached_property
    def _hash(self) -> int:
        return hash((self.axes, self.meshes))

    def __hash__(self) -> int:  # as for a mesh
        return self._hash

    def layout(self, mesh: str, states: Mapping[str, State | None]) -> Layout:
        """The canonical layout: sorted by axis order, replicated axes and axes of one part left out."""
        kept = [(n, s) for n, s in states.items() if s is not None and self.axis(n).ways > 1]
        return Layout(mesh, tuple(sorted(kept, key=lambda item: self.rank(item[0]))))

    def region(self, shape: tuple[int, ...], layout: Layout, coords: Mapping[str, int]) -> Region:
        """The elements of a tensor of ``shape`` that the part at ``coords`` (axis -> index) holds."""
        shards = tuple(
            (state, self.axis(name), coords[name]) for name, state in layout.states if isinstance(state, Shard)
        )
        return _region(shape, shards)


@lru_cache(maxsize=512)
def _axes(space: Space) -> dict[str, Axis]:
    return {axis.name: axis for axis in space.axes}


@lru_cache(maxsize=512)
def _meshes(space: Space) -> dict[str, Mesh]:
    return {mesh.name: mesh for mesh in space.meshes}


@lru_cache(maxsize=512)
def _ranks(space: Space) -> dict[str, int]:
    return {axis.name: i for i, axis in enumerate(space.axes)}


def part_of(start: int, stop: int, axis: Axis, index: int) -> tuple[int, int]:
    """Part ``index`` of the interval ``start:stop``: explicit sizes, or balanced with the larger parts first."""
    if axis.sizes is not None and sum(axis.sizes) == stop - start:
        low = start + sum(axis.sizes[:index])
        return low, low + axis.sizes[index]
    each, more = divmod(stop - start, axis.ways)
    low = start + index * each + min(index, more)
    return low, low + each + (index < more)


@lru_cache(maxsize=65536)
def _region(shape: tuple[int, ...], shards: tuple[tuple[Shard, Axis, int], ...]) -> Region:
    digits: dict[tuple[int, int, int], tuple[int, int]] = {}
    for shard, axis, index in shards:
        key = (shard.dim, shard.extent, shard.inner)
        start, stop = digits.get(key, (0, shard.extent))
        digits[key] = part_of(start, stop, axis, index)
    spans = [Span.full(size) for size in shape]
    for (dim, extent, inner), (start, stop) in digits.items():
        spans[dim] = spans[dim] & digit_span(shape[dim], extent, inner, start, stop)
    return Region(spans)


def parts(space: Space, axes: tuple[str, ...]) -> int:
    """How many parts the product of ``axes`` has."""
    return prod(space.axis(name).ways for name in axes)
