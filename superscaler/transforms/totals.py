"""Sums over meshes: scalars of every stage, partial in different ways, added up once (the global gradient norm)."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.layout import Layout, Partial
from superscaler.ir.program import Accumulate, Collective, Mask, Slice
from superscaler.ir.task import Placement
from superscaler.transforms.blocks import Body, Key
from superscaler.transforms.lowering import Lowering
from superscaler.transforms.reshard import route


def total_over_meshes(work: Lowering, op: Op, placed: Placement) -> None:
    """A sum of scalars that lie on several meshes or are partial in different ways: the global gradient norm.

    Each mesh adds up its own terms, each counted by one device only; one all-reduce over all devices completes it.
    """
    world = _world(work, placed)
    totals: dict[str, int] = {}
    level = work.level[op.name]
    once_each = {d for mesh in _meshes(work, op) for d in work.space.mesh(mesh).devices} == set(
        work.space.mesh(world).devices
    ) and not _overlapping(work, placed)
    for mesh in _meshes(work, op):
        body = work.body(Key(placed.kind, -1, mesh, level), ())
        terms = [i for i, name in enumerate(op.inputs) if _mesh_of(work, name) == mesh]
        totals[mesh] = _mesh_total(work, op, mesh, terms, body)
    if not once_each:  # a device has several terms, or, in a stage without parameters, none
        _total_by_transfer(work, op, world, totals, level)
        return
    axes = work.space.mesh(world).axes
    group, comm = work.grouping(world, axes), work.comm()
    result = work.value(op.outputs[0], Layout(world), ())
    for mesh, total in totals.items():
        if len(work.space.mesh(world).devices) == 1:
            work.made.setdefault((op.outputs[0], world), []).append((total, Key(placed.kind, -1, mesh, level)))
            return
        body = work.body(Key("collective", -1, mesh, level, op.outputs[0]), ())
        body.steps.append(Collective("all_reduce", total, result, axes, group, comm))
        work.made.setdefault((op.outputs[0], world), []).append((result, body.key))


def _meshes(work: Lowering, op: Op) -> list[str]:
    """The meshes that have terms of a sum."""
    return list(dict.fromkeys(_mesh_of(work, name) for name in op.inputs))


def _overlapping(work: Lowering, placed: Placement) -> bool:
    """Whether a device belongs to several of the meshes that take part."""
    meshes = dict.fromkeys(work.tasks.stages[s] for s in placed.stages)
    devices = [d for m in meshes for d in work.space.mesh(m).devices]
    return len(devices) != len(set(devices))


def _total_by_transfer(work: Lowering, op: Op, world: str, totals: dict[str, int], level: int) -> None:
    """Complete each mesh's total by itself, bring it to all devices, and add them up there."""
    tensor, target = op.outputs[0], Layout(world)
    body = work.body(Key("optimizer", -1, world, level + 1), ())
    whole = work.value(tensor, target, ())
    for mesh, total in totals.items():
        source = work.body(Key("optimizer", -1, mesh, level), ())
        value = work.values[total]
        complete = total
        if value.layout.partial:
            complete = work.value(tensor, Layout(mesh), (), value.terms)
            group = work.grouping(mesh, value.layout.partial)
            source.steps.append(Collective("all_reduce", total, complete, value.layout.partial, group, work.comm()))
        path = route(work.space, tensor, (), Layout(mesh), target)
        arrived = work.value(tensor, target, (), value.terms)
        if all(p.source == p.destination for p in path.pieces):
            body.steps.append(Slice(complete, arrived))
        else:
            work.carry(complete, arrived, path, (source.key, body.key), ())
        body.steps.append(Accumulate(arrived, whole))
    work.made.setdefault((tensor, world), []).append((whole, body.key))


def _mesh_of(work: Lowering, tensor: str) -> str:
    return work.meshes_of(work.tasks.placed[work.graph.producer[tensor].name])[0]


def _world(work: Lowering, placed: Placement) -> str:
    """The mesh of all devices of the stages that take part: one of them, or the union made when placing."""
    meshes = list(dict.fromkeys(work.tasks.stages[s] for s in placed.stages))
    return meshes[0] if len(meshes) == 1 else "world"


def _terms(op: Op, terms: list[int]) -> tuple[int, ...]:
    """The terms of a sum that a value has; empty if it has all."""
    return () if len(terms) == len(op.inputs) else tuple(terms)


def _mesh_total(work: Lowering, op: Op, mesh: str, terms: list[int], body: Body) -> int:
    """The terms of one mesh added up, partial along all of its axes."""
    axes = tuple(a for a in work.space.mesh(mesh).axes if work.space.axis(a).ways > 1)
    groups: dict[Layout, list[tuple[int, int]]] = {}
    for term in terms:
        name = op.inputs[term]
        number = work.made[name, mesh][0][0]
        groups.setdefault(work.values[number].layout, []).append((term, number))
    full = work.space.layout(mesh, {a: Partial() for a in axes})
    total = -1
    for layout, members in groups.items():
        numbers = _terms(op, [t for t, _ in members])
        part = work.value(op.outputs[0], layout, (), numbers)
        for term, number in members:
            body.steps.append(Accumulate(number, part, term))
        missing = tuple(a for a in axes if layout.state(a) is None)
        if missing:
            masked = work.value(op.outputs[0], full, (), numbers)
            body.steps.append(Mask(part, masked, missing))
            part = masked
        if len(groups) == 1:
            return part
        if total < 0:
            total = work.value(op.outputs[0], full, (), _terms(op, terms))
        body.steps.append(Accumulate(part, total))
    return total
