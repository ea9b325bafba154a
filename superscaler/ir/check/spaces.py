"""Structure of what all entries share: workers, axes, meshes, layouts, state."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from superscaler.ir.check import limits
from superscaler.ir.check.fault import Place, fault
from superscaler.ir.entry import MASTER, Contents, StateTensor
from superscaler.ir.graph import ITEMSIZE
from superscaler.ir.layout import Layout, Mesh, Partial, Shard, Space


def check_space(plan: Contents) -> None:
    """Workers, axes and meshes are what they say. Raises :class:`Fault`."""
    cluster = plan.cluster
    if not 1 <= plan.workers <= limits.WORKERS:
        raise fault("malformed plan", f"a plan for {plan.workers} workers", right=f"1 to {limits.WORKERS} workers")
    if plan.workers > cluster.size:
        raise fault(
            "malformed plan", f"{plan.workers} workers on a cluster of {cluster.size} devices",
            right=f"at most {cluster.size} workers, or a larger cluster",
        )  # fmt: skip
    if not all(0 <= kind < len(cluster.kinds) for kind in cluster.devices):
        raise fault("malformed plan", "the cluster has a device of a kind that it does not describe")
    _unique("axis", [axis.name for axis in plan.space.axes])
    _unique("mesh", [mesh.name for mesh in plan.space.meshes])
    for axis in plan.space.axes:
        sizes = axis.sizes
        if not 1 <= axis.ways <= limits.WAYS or not axis.name:
            raise fault("malformed plan", f"axis {axis.name!r} of {axis.ways} ways")
        if sizes is not None and (len(sizes) != axis.ways or min(sizes) < 0):
            raise fault("malformed plan", f"axis {axis.name!r} has sizes {list(sizes)[:8]} for {axis.ways} ways")
    for mesh in plan.space.meshes:
        _check_mesh(mesh, plan)


def _unique(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise fault("malformed plan", f"two {what} definitions are named {twice!r}")


def _check_mesh(mesh: Mesh, plan: Contents) -> None:
    axes = {axis.name: axis for axis in plan.space.axes}
    what = f"mesh {mesh.name!r}"
    if len(mesh.axes) != len(mesh.ways) or len(set(mesh.axes)) != len(mesh.axes):
        raise fault("malformed plan", f"{what} has axes {list(mesh.axes)} of {list(mesh.ways)} ways")
    for name, ways in zip(mesh.axes, mesh.ways, strict=True):
        axis = axes.get(name)
        if axis is None or axis.kind != "space" or axis.ways != ways:
            raise fault("malformed plan", f"{what} has {ways} devices along {name!r}, which is no such axis")
    if prod(mesh.ways) != len(mesh.devices) or len(set(mesh.devices)) != len(mesh.devices):
        raise fault("malformed plan", f"{what} lists {len(mesh.devices)} devices for {list(mesh.ways)} ways")
    strange = next((d for d in mesh.devices if not 0 <= d < plan.workers), None)
    if strange is not None:
        raise fault("wrong rank", f"{what} has worker {strange}", right=f"workers 0 to {plan.workers - 1}")


class Layouts:
    """Judges layouts, each once."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.meshes = {mesh.name: mesh for mesh in space.meshes}
        self.axes = {axis.name: axis for axis in space.axes}
        self._known: dict[tuple[Layout, tuple[int, ...]], str | None] = {}

    def reason(self, layout: Layout, shape: tuple[int, ...]) -> str | None:
        """Why a tensor of ``shape`` cannot lie so; None if it can."""
        key = (layout, shape)
        if key not in self._known:
            self._known[key] = self._reason(layout, shape)
        return self._known[key]

    def _reason(self, layout: Layout, shape: tuple[int, ...]) -> str | None:
        mesh = self.meshes.get(layout.mesh)
        if mesh is None:
            return f"there is no mesh {layout.mesh!r}"
        names = [name for name, _ in layout.states]
        for name in names:
            axis = self.axes.get(name)
            if axis is None:
                return f"there is no axis {name!r}"
            if axis.kind == "space" and name not in mesh.axes:
                return f"mesh {mesh.name!r} has no axis {name!r}"
            if axis.ways == 1:
                return f"axis {name!r} has one part only and splits nothing"
        if len(set(names)) != len(names) or names != sorted(names, key=self.space.rank):
            return f"its axes {names} are not in the order of the space"
        return self._states(layout, shape)

    def _states(self, layout: Layout, shape: tuple[int, ...]) -> str | None:
        kinds = {state.kind for _, state in layout.states if isinstance(state, Partial)}
        if len(kinds) > 1:
            return f"it is partial in different ways at once: {', '.join(sorted(kinds))}"
        for name, state in layout.states:
            if isinstance(state, Shard):
                why = _digit_reason(state, shape)
                if why:
                    return f"along {name!r} {why}"
        return None


def _digit_reason(shard: Shard, shape: tuple[int, ...]) -> str | None:
    if not 0 <= shard.dim < len(shape):
        return f"it splits dim {shard.dim} of a tensor with {len(shape)} dims"
    size, period = shape[shard.dim], shard.extent * shard.inner
    if shard.extent < 1 or shard.inner < 1 or size % period:
        return f"it splits a digit {shard} that dim {shard.dim} of size {size} does not have"
    if size // period > limits.INTERVALS:
        return f"a part would be {size // period} intervals of dim {shard.dim}"
    return None


def check_state(plan: Contents, layouts: Layouts) -> None:
    """State tensors have possible layouts, and each entry means the same tensor by the same name."""
    names = [state.name for state in plan.state]
    if len(set(names)) != len(names):
        raise fault("malformed plan", "two state tensors have one name")
    parameters = {state.name: state.shape for state in plan.state if state.kind == "parameter"}
    for state in plan.state:
        check_tensor(state.name, state.shape, state.dtype)
        why = layouts.reason(state.layout, state.shape)
        if why or state.layout.partial or any(plan.space.axis(a).kind == "time" for a, _ in state.layout.states):
            raise fault(
                "wrong layout", f"state {state.name!r} cannot be held as {state.layout}", None,
                why or "state is complete and the same at all times",
            )  # fmt: skip
        if not _begins(state, parameters):
            raise fault(
                "malformed plan", f"state {state.name!r} ({state.kind}) starts as {state.init!r}", None,
                right="parameters and buffers as the model's, all else at 0.0 or as a copy of its own parameter",
            )  # fmt: skip
    homes = {state.name: (state.shape, state.dtype, state.kind) for state in plan.state}
    for name, entry in plan.entries.items():
        for tensor in entry.graph.state():
            home = homes.get(tensor.name)
            if home != (tensor.shape, tensor.dtype, tensor.kind):
                raise fault(
                    "malformed plan", f"state {tensor.name!r} of the graph is not the plan's", Place(name),
                    f"graph: {tensor.kind} of {tensor.dtype}{list(tensor.shape)}",
                    f"plan: {home[2]} of {home[1]}{list(home[0])}" if home else "plan: no state of that name",
                )  # fmt: skip


def _begins(state: StateTensor, parameters: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a state tensor starts as what it is: nothing in the graph says it, so no other start is believed."""
    if state.kind in ("parameter", "buffer"):
        return state.init == state.kind
    if isinstance(state.init, str):
        what, _, name = state.init.partition(":")
        own = state.kind == "optimizer" and state.name == name + MASTER
        return what == "parameter" and own and parameters.get(name) == state.shape
    return state.init == 0.0


def check_tensor(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A tensor of a size that can exist. Raises :class:`Fault`."""
    if dtype not in ITEMSIZE:
        raise fault("malformed plan", f"tensor {name!r} has dtype {dtype!r}", right="one of " + ", ".join(ITEMSIZE))
    fits = len(shape) <= limits.RANK and all(0 <= n <= limits.DIM for n in shape)
    if not fits or prod(shape) > limits.ELEMENTS:
        raise fault("too large", f"tensor {name!r} has shape {list(shape)[:20]}")
