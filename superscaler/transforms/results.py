"""Results: what an entry gives out, completed after all micro-batches: outputs, gradients, the new state."""

from __future__ import annotations

from superscaler.errors import PlanError
from superscaler.ir.layout import Layout, Shard
from superscaler.ir.program import Commit
from superscaler.transforms.blocks import RETURN, Body, Key, Lowered
from superscaler.transforms.lowering import Lowering


def finish(work: Lowering) -> Lowered:
    """Complete the results, gradients and new state of the entry, each in the layout it is kept in."""
    graph, tasks = work.graph, work.tasks
    outputs: dict[str, int] = {}
    gradients: dict[str, int] = {}
    for name, tensor in graph.outputs.items():
        body = _closing(work, tensor)
        layout = _whole(work, tensor, body.key.mesh, keep_shards=True)
        outputs[name] = work.need(tensor, layout, body)
    for name, tensor in graph.gradients.items():
        body = _closing(work, tensor, tasks.homes[name].mesh)
        used = _complete(work, tensor, body.key.mesh)
        whole = _whole(work, tensor, body.key.mesh, keep_shards=True)
        gradients[name] = work.need(tensor, whole, body) if used is None else used
    for name, tensor in graph.updates.items():
        home = tasks.homes[name]
        body = _appending(work, tensor) if graph.tensor[name].kind == "cache" else _closing(work, tensor, home.mesh)
        if name not in work.state:
            work.need(name, home, body)
        commit = Commit(work.need(tensor, home, body), work.state[name])
        if name in tasks.hosted:
            body = work.body(Key("transfer", -1, home.mesh, 0, RETURN + body.key.tag), (), "transfer")
        work.bodies[body.key].steps.append(commit)
    for tensor in graph.state():
        if tensor.name not in work.state:
            work.state[tensor.name] = work.value(tensor.name, tasks.homes[tensor.name], ())
    return Lowered(
        tasks, work.values, work.bodies, work.groupings, work.routes, work.inputs, work.state, outputs, gradients,
        work.comms,
    )  # fmt: skip


def _appending(work: Lowering, tensor: str) -> Body:
    """The block that makes the new content of a cache: committed there, it is written in place."""
    op = work.graph.producer[tensor]
    placed = work.tasks.placed[op.name]
    if placed.over:
        raise PlanError(f"{op.name}: a cache cannot be filled micro-batch by micro-batch", hint="microbatches=1")
    return work.body(work.key_of(op, work.meshes_of(placed)[0]), ())


def _closing(work: Lowering, tensor: str, mesh: str | None = None) -> Body:
    """The block, after all micro-batches, in which a result is completed."""
    producer = work.graph.producer.get(tensor)
    if producer is not None:
        placed = work.tasks.placed[producer.name]
        meshes = work.meshes_of(placed)
        where = mesh if mesh in meshes else meshes[0]
        if not placed.over and placed.kind in ("optimizer", "reduce"):
            key = work.key_of(producer, where)
            if mesh not in (None, where):  # made elsewhere: a block of its own, after the exchange
                key = key._replace(mesh=mesh, level=key.level + 1)
            return work.body(key, ())
        mesh = mesh or where
    return work.body(Key("optimizer" if work.graph.updates else "reduce", -1, mesh or work.tasks.stages[0]), ())


def _complete(work: Lowering, tensor: str, mesh: str) -> int | None:
    """The value of a gradient, complete and of the whole batch, that the optimizer read."""
    made = [v for v, _ in work.made.get((tensor, mesh), []) if not work.values[v].over]
    return next((v for v in made if not work.values[v].layout.partial), None)


def _whole(work: Lowering, tensor: str, mesh: str, *, keep_shards: bool) -> Layout:
    made = work.made.get((tensor, mesh))
    if not made or not keep_shards:
        return Layout(mesh)
    have = work.values[made[0][0]].layout
    states = {a: s for a, s in have.states if isinstance(s, Shard) and work.space.axis(a).kind == "space"}
    return work.space.layout(mesh, states)
