"""How much state each worker holds, on its device and in the memory of its host."""

from __future__ import annotations

from typing import Literal

from superscaler.ir.check.sizes import PartSizes, even, largest
from superscaler.ir.entry import Contents
from superscaler.ir.graph import ITEMSIZE, Tensor
from superscaler.ir.layout import Layout, Space


def state_bytes(plan: Contents, memory: Literal["device", "host"] = "device") -> dict[int, int]:
    """Worker -> bytes of all state that it holds in a memory, whatever the entry."""
    per_mesh: dict[str, int] = {}
    total: dict[int, int] = {}
    uneven: dict[tuple[tuple[int, ...], Layout], dict[int, int]] = {}
    sizes = {mesh.name: PartSizes(plan.space, mesh.devices) for mesh in plan.space.meshes}
    for state in plan.state:
        if state.memory != memory:
            continue
        name = state.layout.mesh
        if even(plan.space, state.layout):
            each = sizes[name].bytes(Tensor(state.name, state.shape, state.dtype), state.layout)
            per_mesh[name] = per_mesh.get(name, 0) + each
            continue
        key = (state.shape, state.layout)
        if key not in uneven:
            uneven[key] = elements(plan.space, *key)
        for worker, count in uneven[key].items():
            total[worker] = total.get(worker, 0) + count * ITEMSIZE[state.dtype]
    for name, each in per_mesh.items():
        for worker in plan.space.mesh(name).devices:
            total[worker] = total.get(worker, 0) + each
    return total


def elements(space: Space, shape: tuple[int, ...], layout: Layout) -> dict[int, int]:
    """Worker -> elements of its part; parts along equal coordinates are measured once."""
    mesh = space.mesh(layout.mesh)
    axes = [name for name, _ in layout.states if name in mesh.axes]
    known: dict[tuple[int, ...], int] = {}
    found: dict[int, int] = {}
    for worker in mesh.devices:
        coords = mesh.coords(worker)
        place = tuple(coords[axis] for axis in axes)
        if place not in known:
            known[place] = largest(space, shape, layout, coords)
        found[worker] = known[place]
    return found
