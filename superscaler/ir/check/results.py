"""Results: what the Graph promises is there at the end: outputs, gradients, and the new content of every state."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from superscaler.ir.check.bodies import Bodies
from superscaler.ir.check.fault import FaultKind, fault
from superscaler.ir.check.order import History
from superscaler.ir.check.scope import Role, Scope
from superscaler.ir.layout import Layout

Covered = dict[tuple[Layout, tuple[int, ...]], bool]
Kept = Mapping[int, tuple[Bodies, History]]  # role -> its bodies and history


def check_results(scope: Scope, kept: Kept) -> None:
    """Raises a :class:`Fault` for a result that is missing, incomplete, released, or not the Graph's."""
    for role in scope.roles:
        bodies, history = kept[role.index]
        for what, table, tensors in (
            ("output", role.program.outputs, scope.graph.outputs),
            ("gradient", role.program.gradients, scope.graph.gradients),
        ):
            for name, value in table.items():
                _check_result(role, f"{what} {name!r}", value, tensors.get(name), bodies, history)
    whole: Covered = {}
    for name in scope.graph.outputs:
        _check_whole(scope, f"output {name!r}", [(r, r.program.outputs.get(name)) for r in scope.roles], whole)
    for name in scope.graph.gradients:
        _check_whole(scope, f"gradient {name!r}", [(r, r.program.gradients.get(name)) for r in scope.roles], whole)
    _check_commits(scope, kept)


def _check_result(role: Role, what: str, value: int, tensor: str | None, bodies: Bodies, history: History) -> None:
    v = role.program.values[value]
    if tensor is None or v.tensor != tensor:
        raise fault(
            "wrong result", f"{what} is {role.value_text(value)}", role.place(),
            right=f"tensor {tensor!r}" if tensor else "one of the graph's results",
        )  # fmt: skip
    if v.layout.partial or v.over or role.terms[value] is not None:
        raise fault(
            "wrong result", f"{what} is {role.value_text(value)}", role.place(), "it is not complete",
            right="a value that is complete, once per step",
        )  # fmt: skip
    if value in role.inputs or value in role.state_of:
        return
    slot = bodies.slot((value, ()))
    kin = history.kin_of.get(slot)
    points = None if kin is None else history.left.get((kin, 0))
    if value in role.host or points is None:
        known = kin is not None and any(life.kin == kin for life in history.lives)
        kind: FaultKind = "freed result" if known else "missing result"
        raise fault(kind, f"{what} is {role.value_text(value)}, which is not there at the end", role.place())
    if points != bodies.full(value):
        raise fault("reduction too early", f"{what} is {role.value_text(value)}, which lacks terms", role.place())


def _check_whole(scope: Scope, what: str, holders: list[tuple[Role, int | None]], whole: Covered) -> None:
    """The workers that hold a result hold all parts of it between them. ``whole``: what has been found so far."""
    layouts: dict[Layout, list[Role]] = {}
    for role, value in holders:
        if value is not None:
            layouts.setdefault(role.program.values[value].layout, []).append(role)
    if not layouts:
        raise fault("missing result", f"no worker has {what}", scope.place())
    for layout, roles in layouts.items():
        key = (layout, tuple(role.index for role in roles))
        if key not in whole:
            whole[key] = _covered(scope, layout, roles)
        if whole[key]:
            return
    raise fault("missing result", f"the workers that have {what} do not have all parts of it", scope.place())


def _covered(scope: Scope, layout: Layout, roles: list[Role]) -> bool:
    mesh = scope.space.mesh(layout.mesh)
    axes = [name for name, _ in layout.states]
    have = {tuple(mesh.coords(w)[a] for a in axes) for role in roles for w in role.workers}
    return have == set(product(*(range(scope.space.axis(a).ways) for a in axes)))


def _check_commits(scope: Scope, kept: Kept) -> None:
    """Every worker that holds a state which the entry updates commits its new content."""
    homes = {state.name: state.layout.mesh for state in scope.plan.state}
    holders: dict[str, list[Role]] = {}
    for name, tensor in scope.graph.updates.items():
        mesh = homes[name]
        if mesh not in holders:
            holders[mesh] = _roles_on(scope, mesh, f"a commit of tensor {tensor!r} to state {name!r}")
        for role in holders[mesh]:
            value = role.program.state.get(name)
            if value is None or value not in kept[role.index][1].commits:
                raise fault(
                    "missing commit", f"state {name!r} is not updated", role.place(), right=f"a commit of {tensor!r}"
                )


def _roles_on(scope: Scope, mesh: str, why: str) -> list[Role]:
    """The roles of a mesh's workers, each of which must have one."""
    devices = scope.space.mesh(mesh).devices
    idle = next((worker for worker in devices if worker not in scope.role_of), None)
    if idle is not None:
        raise fault("missing commit", f"worker {idle} runs nothing", scope.place(), right=why)
    return list({scope.role_of[w].index: scope.role_of[w] for w in devices}.values())
