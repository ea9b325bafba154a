"""How much state each worker holds."""

from __future__ import annotations

from superscaler.ir.check.sizes import PartSizes, even, largest
from superscaler.ir.entry import Contents, StateTensor
from superscaler.ir.graph import ITEMSIZE, Tensor
from superscaler.ir.layout import Layout


def state_bytes(plan: Contents) -> dict[int, int]:
    """Worker -> bytes of all state that it holds, whatever the entry."""
    per_mesh: dict[str, int] = {}
    total: dict[int, int] = {}
    sizes = {mesh.name: PartSizes(plan.space, mesh.devices) for mesh in plan.space.meshes}
    for state in plan.state:
        name = state.layout.mesh
        if even(plan.space, state.layout):
            each = sizes[name].bytes(Tensor(state.name, state.shape, state.dtype), state.layout)
            per_mesh[name] = per_mesh.get(name, 0) + each
        else:
            for worker in plan.space.mesh(name).devices:
                total[worker] = total.get(worker, 0) + _uneven(plan, state, state.layout, worker)
    for name, each in per_mesh.items():
        for worker in plan.space.mesh(name).devices:
            total[worker] = total.get(worker, 0) + each
    return total


def _uneven(plan: Contents, state: StateTensor, layout: Layout, worker: int) -> int:
    coords = plan.space.mesh(layout.mesh).coords(worker)
    return largest(plan.space, state.shape, layout, coords) * ITEMSIZE[state.dtype]
