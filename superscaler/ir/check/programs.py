"""Structure of Programs: whatever they refer to exists."""

from __future__ import annotations

from superscaler.ir.check import limits
from superscaler.ir.check.fault import fault
from superscaler.ir.check.scope import Role, Scope, block_text, step_kind
from superscaler.ir.check.spaces import Layouts
from superscaler.ir.program import (
    Accumulate,
    At,
    Block,
    Call,
    Collect,
    Collective,
    Commit,
    Definition,
    Mask,
    Offload,
    Program,
    Recv,
    Send,
    Slice,
    Step,
    Value,
)


def check_programs(scope: Scope, layouts: Layouts) -> None:
    """Indices are in range, names are known, each worker has one role. Raises :class:`Fault`."""
    _check_time(scope)
    seen: set[int] = set()
    for program in scope.entry.programs:
        for worker in program.workers:
            if not 0 <= worker < scope.plan.workers or worker in seen:
                why = "which another role has too" if worker in seen else "which the plan does not have"
                raise fault("wrong rank", f"a role has worker {worker}, {why}", scope.place())
            seen.add(worker)
        if not program.workers:
            raise fault("malformed plan", "a role has no worker", scope.place())
    for number, definition in enumerate(scope.entry.definitions):
        _check_definition(scope, number, definition)
    _check_tables(scope, layouts)


def check_role(role: Role, layouts: Layouts) -> None:
    """One Program's values, blocks and order."""
    program = role.program
    for number, value in enumerate(program.values):
        _check_value(role, number, value, layouts)
    _check_named(role)
    for number, block in enumerate(program.blocks):
        _check_block(role, number, block)
    _check_order(role, program)


def _check_time(scope: Scope) -> None:
    axes = {axis.name: axis for axis in scope.space.axes}
    if scope.micro:
        axis = axes.get(scope.micro)
        if axis is None or axis.kind != "time" or axis.ways != scope.microbatches:
            raise fault(
                "malformed plan", f"{scope.microbatches} micro-batches over axis {scope.micro!r}", scope.place(),
                right=f"a time axis of {scope.microbatches} ways",
            )  # fmt: skip
    elif scope.microbatches != 1:
        raise fault("malformed plan", f"{scope.microbatches} micro-batches without an axis of them", scope.place())


def _check_definition(scope: Scope, number: int, definition: Definition) -> None:
    count = definition.inputs
    if not 0 <= count <= limits.TERMS:
        raise fault("malformed plan", f"definition {number} has {count} inputs", scope.place())
    for i, row in enumerate(definition.rows):
        if not all(0 <= n < count for n in row.ins):
            raise fault("malformed plan", f"definition {number}, row {i} reads what is not computed yet", scope.place())
        if row.outs != tuple(range(count, count + len(row.outs))):
            raise fault("malformed plan", f"definition {number}, row {i} numbers its results wrongly", scope.place())
        count += len(row.outs)
    if not all(definition.inputs <= n < count for n in definition.outs):
        raise fault("malformed plan", f"definition {number} returns what it does not compute", scope.place())


def _check_tables(scope: Scope, layouts: Layouts) -> None:
    tensors = scope.graph.tensor
    for number, route in enumerate(scope.entry.routes):
        tensor = tensors.get(route.tensor)
        if tensor is None:
            raise fault("malformed plan", f"route {number} carries {route.tensor!r}, which is no tensor", scope.place())
        for layout in (route.source, route.destination):
            why = layouts.reason(layout, tensor.shape)
            if why:
                raise fault("wrong layout", f"route {number}: {tensor.name!r} as {layout}", scope.place(), why)
    for number, grouping in enumerate(scope.entry.groupings):
        members = [w for group in grouping.groups for w in group]
        if len(set(members)) != len(members) or not all(0 <= w < scope.plan.workers for w in members):
            raise fault("wrong group", f"grouping {number} does not consist of disjoint groups", scope.place())


def _check_value(role: Role, number: int, value: Value, layouts: Layouts) -> None:
    scope = role.scope
    tensor = scope.graph.tensor.get(value.tensor)
    if tensor is None:
        raise fault("malformed plan", f"value {number} is of {value.tensor!r}, which is no tensor", role.place())
    why = layouts.reason(value.layout, tensor.shape) or _time_reason(scope, value) or _terms_reason(scope, value)
    if why:
        raise fault("wrong layout", role.value_text(number), role.place(), why)
    strange = role.outside(value.layout.mesh)
    if strange:
        raise fault(
            "wrong rank", f"{role.value_text(number)} on worker {min(strange)}", role.place(),
            right=f"a worker of mesh {value.layout.mesh!r}",
        )  # fmt: skip


def _time_reason(scope: Scope, value: Value) -> str | None:
    axes = {axis.name: axis for axis in scope.space.axes}
    for name in value.over:
        if name not in axes or axes[name].kind != "time":
            return f"{name!r} is no time axis"
    if len(set(value.over)) != len(value.over):
        return "it is over one axis twice"
    timed = [name for name, _ in value.layout.states if axes[name].kind == "time"]
    missing = [name for name in timed if name not in value.over]
    return f"it is split over time axis {missing[0]!r} but has no instance per index of it" if missing else None


def _terms_reason(scope: Scope, value: Value) -> str | None:
    if not value.terms:
        return None
    count = len(scope.addends.get(value.tensor, ()))
    distinct = len(set(value.terms)) == len(value.terms)
    return None if distinct and all(0 <= t < count for t in value.terms) else f"its sum has {count} terms"


def _check_named(role: Role) -> None:
    program, graph = role.program, role.scope.graph
    homes = {state.name: state.layout for state in role.scope.plan.state}
    tables = (("input", program.inputs), ("state", program.state), ("output", program.outputs))
    for what, table in (*tables, ("gradient", program.gradients)):
        for name, value in table.items():
            if not 0 <= value < len(program.values):
                raise fault("malformed plan", f"{what} {name!r} is value {value}", role.place())
    for name, value in program.inputs.items():
        v = program.values[value]
        if v.tensor not in graph.inputs or v.layout.partial or v.over or v.tensor != name:
            raise fault("malformed plan", f"input {name!r} is {role.value_text(value)}", role.place())
    for name, value in program.state.items():
        v = program.values[value]
        if v.tensor != name or name not in homes or v.over:
            raise fault("malformed plan", f"state {name!r} is {role.value_text(value)}", role.place())
        if v.layout != homes[name]:
            raise fault(
                "wrong layout", f"state {name!r} is {role.value_text(value)}", role.place(),
                right=f"its home {homes[name]}",
            )  # fmt: skip
    if len(set(program.state.values())) != len(program.state) or role.inputs & set(role.state_of):
        raise fault("malformed plan", "one value is two inputs or state tensors", role.place())


def _check_block(role: Role, number: int, block: Block) -> None:
    scope = role.scope
    where = block_text(block, number)
    if block.over not in ((), (scope.micro,)) or (block.over and not scope.micro):
        raise fault(
            "malformed plan", f"{where} is over {list(block.over)}", role.place(), right="micro-batches, or none"
        )
    for step in block.steps:
        if not all(0 <= v < len(role.program.values) for v in values_of(step)):
            raise fault(
                "malformed plan", f"a {step_kind(step)} of {where} names a value that is not there", role.place()
            )
        _check_at(role, number, step, at_of(step))
        _check_references(role, number, step)


def _check_at(role: Role, block: int, step: Step, at: At) -> None:
    axes = {axis.name: axis for axis in role.scope.space.axes}
    for name, index in at:
        axis = axes.get(name)
        if axis is None or axis.kind != "time" or name == role.scope.micro or not 0 <= index < axis.ways:
            raise fault("wrong time index", f"a step at {name} = {index}", role.place(block, step=step))
    if len({name for name, _ in at}) != len(at):
        raise fault("wrong time index", "a step at two indices of one axis", role.place(block, step=step))


def _check_references(role: Role, block: int, step: Step) -> None:
    entry = role.scope.entry
    match step:
        case Call():
            if not 0 <= step.definition < len(entry.definitions):
                raise fault("malformed plan", f"there is no definition {step.definition}", role.place(block))
            definition = entry.definitions[step.definition]
            if len(step.ins) != definition.inputs or len(step.outs) != len(definition.outs):
                raise fault("malformed plan", f"a call does not fit definition {step.definition}", role.place(block))
            if all(step.mesh != mesh.name for mesh in role.scope.space.meshes):
                raise fault("malformed plan", f"a call on mesh {step.mesh!r}, which is not there", role.place(block))
        case Collective():
            if not 0 <= step.grouping < len(entry.groupings):
                raise fault("malformed plan", f"there is no grouping {step.grouping}", role.place(block, step=step))
        case Send() | Recv():
            if not 0 <= step.route < len(entry.routes):
                raise fault("malformed plan", f"there is no route {step.route}", role.place(block, step=step))
        case _:
            pass


def values_of(step: Step) -> tuple[int, ...]:
    """The values that a step names."""
    match step:
        case Call():
            return (*step.ins, *step.outs)
        case Slice() | Mask() | Collective() | Offload():
            return (step.src, step.dst)
        case Accumulate() | Collect():
            return (step.src, step.into)
        case Commit():
            return (step.src, step.state)
        case Send():
            return (step.src,)
        case Recv():
            return (step.dst, step.local) if step.local != -1 else (step.dst,)


def at_of(step: Step) -> At:
    """The time indices that are fixed for a step."""
    return () if isinstance(step, Commit | Offload) else step.at


def _check_order(role: Role, program: Program) -> None:
    for i, item in enumerate(program.order):
        if not 0 <= item.block < len(program.blocks):
            raise fault("malformed plan", f"task {i} runs block {item.block}, which is not there", role.place())
        count = role.scope.microbatches if program.blocks[item.block].over else 1
        if not 0 <= item.microbatch < count:
            raise fault(
                "wrong time index", f"task {i} runs micro-batch {item.microbatch}", role.place(item.block),
                right=f"0 to {count - 1}",
            )  # fmt: skip
        if not -1 <= item.frees < len(program.frees):
            raise fault("malformed plan", f"task {i} frees set {item.frees}, which is not there", role.place())
    for values in program.frees:
        if not all(0 <= v < len(program.values) for v in values) or len(set(values)) != len(values):
            raise fault("malformed plan", "a free set names a value that is not there, or one twice", role.place())
    named = [buffer.value for buffer in program.buffers]
    if not all(0 <= v < len(program.values) for v in named) or len(set(named)) != len(named):
        raise fault("malformed plan", "a buffer is of a value that is not there, or of one that has one", role.place())
