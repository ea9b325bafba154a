"""Steps: what each step of a block needs and gives."""

from __future__ import annotations

from superscaler.ir.check.bodies import Bodies, Body, Meeting
from superscaler.ir.check.contributions import contribute
from superscaler.ir.check.instances import Instances
from superscaler.ir.check.moves import collective
from superscaler.ir.check.ops import Held
from superscaler.ir.check.regions import contained
from superscaler.ir.layout import Partial
from superscaler.ir.program import (
    Accumulate,
    Call,
    Collect,
    Collective,
    Commit,
    Mask,
    Offload,
    Recv,
    Send,
    Slice,
    Step,
)


def run_block(bodies: Bodies, number: int) -> Body:
    """What a block does. Raises a :class:`Fault` unless every step is right."""
    run = Instances(bodies, number)
    for step in run.block.steps:
        run.step = step
        _step(run, step)
    return run.body


def _step(run: Instances, step: Step) -> None:
    match step:
        case Call():
            _call(run, step)
        case Slice():
            _slice(run, step)
        case Mask():
            _mask(run, step)
        case Accumulate() | Collect():
            contribute(run, step)
        case Collective():
            _collective(run, step)
        case Send():
            _send(run, step)
        case Recv():
            _recv(run, step)
        case Commit():
            _commit(run, step)
        case Offload():
            _offload(run, step)


def _call(run: Instances, step: Call) -> None:
    if run.role.outside(step.mesh):
        raise run.wrong("wrong rank", f"a call on mesh {step.mesh!r}, which lacks some of these workers")
    ins = [run.read(value, step.at) for value in step.ins]
    results = run.bodies.ops.call(step, ins, run.times(step.at), run.place())
    shared = run.bodies.ops.shares(step.definition)
    for value, held, numbers in zip(step.outs, results, shared, strict=True):
        run.write(value, step.at, held)
        run.view(value, [step.ins[n] for n in numbers])


def _slice(run: Instances, step: Slice) -> None:
    have = run.read(step.src, step.at)
    run.slot(step.dst, step.at)
    gives = run.role.program.values[step.dst]
    layout = gives.layout
    if gives.tensor != have.tensor:
        raise run.wrong("wrong tensor", f"{run.name(step.dst)} is sliced out of {have.tensor!r}")
    shape = run.scope.graph.tensor[have.tensor].shape
    why = contained(run.bodies.regions, shape, have.layout, layout, run.role.workers)
    if why is not None:
        raise run.wrong(
            why[0], f"{run.name(step.dst)} is sliced out of {have.layout}", why[1],
            right="a part of what the worker holds itself",
        )  # fmt: skip
    run.write(step.dst, step.at, have._replace(layout=layout))
    run.view(step.dst, [step.src])


def _mask(run: Instances, step: Mask) -> None:
    have = run.read(step.src, step.at)
    space = run.scope.space
    layout = run.role.program.values[step.dst].layout
    if not set(step.axes) <= set(space.mesh(have.layout.mesh).axes):
        raise run.wrong(
            "wrong group", f"{run.name(step.dst)} is masked along {list(step.axes)}", right="its mesh's axes"
        )
    masked = {axis for axis in step.axes if space.axis(axis).ways > 1}
    added = {axis for axis in layout.partial if have.layout.state(axis) is None}
    if layout.without(*added) != have.layout or added != masked:
        raise run.wrong(
            "complete read as partial", f"{run.name(step.dst)} is masked along {list(step.axes)} out of {have.layout}",
            right="partial sums along just the axes that are masked",
        )  # fmt: skip
    if any(layout.state(axis) != Partial("sum") for axis in added):
        raise run.wrong("wrong kind of partial", f"{run.name(step.dst)}: zeros are neutral in a sum only")
    origin = run.scope.origin("mask", *sorted(added), have.origin) if layout.partial else 0
    run.write(step.dst, step.at, have._replace(layout=layout, origin=origin))
    run.view(step.dst, [step.src])


def _collective(run: Instances, step: Collective) -> None:
    have = run.read(step.src, step.at)
    value = run.role.program.values[step.dst]
    mesh = run.scope.space.mesh(value.layout.mesh)
    if not set(step.axes) <= set(mesh.axes) or len(set(step.axes)) != len(step.axes):
        raise run.wrong("wrong group", f"a {step.kind} along {list(step.axes)}", right=f"axes of mesh {mesh.name!r}")
    if have.layout.mesh == mesh.name:
        axes = tuple(axis for axis in step.axes if run.scope.space.axis(axis).ways > 1)
        why = collective(run.scope.space, step.kind, have.layout, value.layout, axes)
        if why is not None:
            raise run.wrong(
                why[0], f"{step.kind} of {run.name(step.src)} along {list(step.axes)} to {value.layout}", why[1]
            )
        origin = run.scope.origin(step.kind, axes, have.origin) if value.layout.partial else 0
        gives = Held(have.tensor, value.layout, have.terms, origin)
    else:  # a sum over several meshes: what all of them bring is judged where they meet
        gives = Held(have.tensor, value.layout, run.role.terms[step.dst])
    run.write(step.dst, step.at, gives)
    _meet(run, step, have, gives)


def _send(run: Instances, step: Send) -> None:
    route = run.scope.entry.routes[step.route]
    have = run.read(step.src, step.at)
    if (have.tensor, have.layout) != (route.tensor, route.source):
        raise run.wrong(
            "wrong layout" if have.tensor == route.tensor else "wrong tensor",
            f"{run.name(step.src)} is sent on a route of {route.tensor!r}", right=f"{route.tensor!r} as {route.source}",
        )  # fmt: skip
    _meet(run, step, have, None)


def _recv(run: Instances, step: Recv) -> None:
    route = run.scope.entry.routes[step.route]
    own: Held | None = None
    if step.local >= 0:
        own = run.read(step.local, step.at)
        if (own.tensor, own.layout) != (route.tensor, route.source):
            raise run.wrong(
                "wrong layout", f"pieces of {run.name(step.local)} are taken for those of a route",
                right=f"{route.tensor!r} as {route.source}",
            )  # fmt: skip
    origin = run.scope.origin("comm", step.comm) if route.destination.partial else 0
    gives = Held(route.tensor, route.destination, run.role.terms[step.dst], origin)
    run.write(step.dst, step.at, gives)
    _meet(run, step, own, gives)


def _meet(run: Instances, step: Collective | Send | Recv, src: Held | None, dst: Held | None) -> None:
    run.body.comms.append(step.comm)
    run.bodies.meetings.append(Meeting(run.role, run.number, step, src, dst))


def _commit(run: Instances, step: Commit) -> None:
    have = run.read(step.src)
    name = run.role.state_of.get(step.state)
    if name is None:
        raise run.wrong("wrong commit", f"{run.name(step.state)} is not a state tensor")
    updates = run.scope.graph.updates
    if updates.get(name) != have.tensor or have.terms is not None:
        raise run.wrong(
            "wrong commit", f"state {name!r} is given tensor {have.tensor!r}",
            right=f"tensor {updates[name]!r}" if name in updates else "no commit: this entry does not update it",
        )  # fmt: skip
    home = run.role.program.values[step.state].layout
    if have.layout != home:
        raise run.wrong(
            "wrong commit", f"state {name!r} is given {have.tensor!r} as {have.layout}", right=f"as its home {home}"
        )
    if step.state in run.role.host and run.block.lane != "transfer":
        raise run.wrong(
            "host value", f"{run.name(step.state)} lies in host memory", right="a commit on the transfer lane"
        )
    if step.state in run.body.commits:
        raise run.wrong("duplicated commit", f"state {name!r} is committed twice")
    run.body.commits.append(step.state)


def _offload(run: Instances, step: Offload) -> None:
    if run.block.lane != "transfer":
        raise run.wrong("host value", f"{run.name(step.src)} is copied to the {step.to}", right="on the transfer lane")
    if step.to == "host":
        have = run.read(step.src)
    elif step.src in run.role.host:
        have = run.read_hosted(step.src)
    else:
        raise run.wrong("host value", f"{run.name(step.src)} is not in host memory")
    if step.dst in run.role.state_of:
        raise run.wrong("wrong commit", f"{run.name(step.dst)} is state", right="a commit, which says that it is new")
    if step.to == "device" and step.dst in run.role.host:
        raise run.wrong("host value", f"{run.name(step.dst)} is written both on the device and in host memory")
    run.write(step.dst, (), have)
