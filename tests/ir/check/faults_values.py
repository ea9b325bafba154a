"""Faults of values: wrong regions, scales, operands, kinds of partial, terms."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from editing import Spot, put, renamed, replace, spots, with_entry, with_program, with_step, with_steps, with_value
from faults import injects

from superscaler.ir.layout import Layout, Partial, Shard, State
from superscaler.ir.plan import Plan
from superscaler.ir.program import (
    Accumulate,
    Call,
    Collect,
    Collective,
    Commit,
    Definition,
    Grouping,
    Mask,
    Recv,
    Row,
    Send,
    Slice,
    Step,
)
from superscaler.ir.rules.rule import Split

LAYOUT = ("wrong layout", "wrong region", "partial read as complete", "complete read as partial", "wrong result",
          "wrong commit", "wrong kind of partial", "mixed partials", "wrong rank", "buffer too small")  # fmt: skip
NOT_COMMUTATIVE = ("aten.mm.default", "aten.bmm.default", "aten.sub.Tensor", "aten.div.Tensor")


def executed(plan: Plan) -> Iterator[tuple[str, int]]:
    """(entry, definition) of every definition that some call runs."""
    yield from sorted({(spot.entry, spot.step(plan).definition) for spot in spots(plan, Call)})


def with_row(plan: Plan, entry: str, definition: int, row: int, changed: Row) -> Plan:
    found: Definition = plan.entries[entry].definitions[definition]
    rows = put(found.rows, row, changed)
    return with_entry(
        plan, entry, definitions=put(plan.entries[entry].definitions, definition, replace(found, rows=rows))
    )


def rows_of(plan: Plan) -> list[tuple[str, int, int, Row]]:
    return [
        (entry, number, i, row)
        for entry, number in executed(plan)
        for i, row in enumerate(plan.entries[entry].definitions[number].rows)
    ]


# --- ops --------------------------------------------------------------------------------------------------------------


@injects("wrong scale", "wrong scale", "changed op", bug=10)
def wrong_scale(plan: Plan, rng: random.Random) -> Plan | None:
    """A factor in an op's arguments is another: a mean over one rank's tokens for one over all."""

    def places(row: Row) -> list[int]:
        return [i for i, arg in enumerate(row.args) if isinstance(arg, float) and arg not in (0.0,)]

    found = [(e, d, i, row) for e, d, i, row in rows_of(plan) if places(row)]
    if not found:
        return None
    entry, definition, i, row = rng.choice(found)
    place = rng.choice(places(row))
    args = put(row.args, place, row.args[place] * plan.workers * 2)
    return with_row(plan, entry, definition, i, replace(row, args=args))


@injects("another op", "wrong local computation", "changed op")
def another_op(plan: Plan, rng: random.Random) -> Plan | None:
    swaps = {"aten.add.Tensor": "aten.sub.Tensor", "aten.mul.Tensor": "aten.add.Tensor", "aten.gelu.default":
             "aten.relu.default", "aten.relu.default": "aten.neg.default", "aten.amax.default": "aten.amin.default",
             "aten.sum.dim_IntList": "aten.amax.default", "superscaler.sgd": "superscaler.adamw"}  # fmt: skip
    found = [(e, d, i, row) for e, d, i, row in rows_of(plan) if row.target in swaps]
    if not found:
        return None
    entry, definition, i, row = rng.choice(found)
    return with_row(plan, entry, definition, i, replace(row, target=swaps[row.target]))


@injects("file written", "wrong local computation", "changed op", "no rule")
def not_allowed(plan: Plan, rng: random.Random) -> Plan | None:
    """An op that no rule names, both in the graph and where it runs: a plan must not be able to run it."""
    entry, definition, i, row = rng.choice(rows_of(plan))
    graph = plan.entries[entry].graph
    bases = {s.step(plan).base for s in spots(plan, Call) if (s.entry, s.step(plan).definition) == (entry, definition)}
    ops = list(graph.ops)
    for base in bases:
        ops[base + row.offset] = replace(ops[base + row.offset], target="aten.from_file.default")
    plan = with_entry(plan, entry, graph=replace(graph, ops=tuple(ops)))
    return with_row(plan, entry, definition, i, replace(row, target="aten.from_file.default"))


@injects(
    "operands swapped",
    "wrong local computation",
    "wrong tensor",
    "wrong layout",
    "partial read as complete",
    "complete read as partial",
)
def operands_swapped(plan: Plan, rng: random.Random) -> Plan | None:
    found = [
        (e, d, i, row)
        for e, d, i, row in rows_of(plan)
        if row.target in NOT_COMMUTATIVE and len(row.ins) == 2 and row.ins[0] != row.ins[1]
    ]
    if not found:
        return None
    entry, definition, i, row = rng.choice(found)
    return with_row(plan, entry, definition, i, replace(row, ins=(row.ins[1], row.ins[0])))


@injects(
    "wrong operand", "wrong local computation", "wrong tensor", "wrong layout", "wrong commit", "not a term", bug=9
)
def wrong_operand(plan: Plan, rng: random.Random) -> Plan | None:
    """A call runs on another layer's weight, of the same shape and layout."""
    found: list[tuple[Spot, int, int]] = []
    for spot in spots(plan, Call):
        program = spot.program(plan)
        state = set(program.state.values())
        tensors = plan.entries[spot.entry].graph.tensor
        for k, value in enumerate(spot.step(plan).ins):
            if value not in state:
                continue
            mine = program.values[value]
            for other in state - set(spot.step(plan).ins):
                theirs = program.values[other]
                if theirs.layout == mine.layout and tensors[theirs.tensor].shape == tensors[mine.tensor].shape:
                    found.append((spot, k, other))
    if not found:
        return None
    spot, k, other = rng.choice(found)
    step: Call = spot.step(plan)
    return with_step(plan, spot, replace(step, ins=put(step.ins, k, other)))


@injects("wrong split", "wrong region", *LAYOUT, "illegal split", "wrong tensor", "not a term")
def wrong_split(plan: Plan, rng: random.Random) -> Plan | None:
    """An op whose arguments depend on its part is split otherwise than its operands are."""
    found = []
    for entry, definition, i, row in rows_of(plan):
        for k, (axis, split) in enumerate(row.splits):
            placed = any(isinstance(arg, str) and arg.startswith("#") for arg in row.args)
            if placed and plan.space.axis(axis).ways > 1 and not split.passes and row.ins:
                found.append((entry, definition, i, row, k))
    if not found:
        return None
    entry, definition, i, row, k = rng.choice(found)
    axis, split = row.splits[k]
    changed = Split(split.dim, split.extent * 2, split.inner) if rng.random() < 0.5 else None
    splits = (*row.splits[:k], *([(axis, changed)] if changed else []), *row.splits[k + 1 :])
    return with_row(plan, entry, definition, i, replace(row, splits=splits))


# --- layouts ----------------------------------------------------------------------------------------------------------


def cutting(plan: Plan) -> list[Spot]:
    """Steps that cut a part out of what they read, by the layout of what they write."""
    return [
        spot
        for spot in spots(plan, Slice, Collective)
        if isinstance(spot.step(plan), Slice) or spot.step(plan).kind != "all_reduce"
    ]


def other_shard(shard: Shard, shape: tuple[int, ...]) -> Shard | None:
    """Another digit of the tensor with as many parts."""
    for dim, size in enumerate(shape):
        for other in (Shard(dim, size), Shard(dim, shard.extent, size // max(1, shard.extent))):
            fits = other.extent >= 2 and other.inner >= 1 and size % (other.extent * other.inner) == 0
            if fits and (other.dim, other.extent * other.inner) != (shard.dim, shard.extent * shard.inner):
                return other
    return None


@injects("wrong shard", "wrong region", *LAYOUT, bug=8)
def wrong_shard(plan: Plan, rng: random.Random) -> Plan | None:
    """A slice or a collective gives another part of the tensor than its readers take it for."""
    found: list[tuple[Spot, int, str, Shard]] = []
    for spot in cutting(plan):
        value = spot.step(plan).dst
        v = spot.program(plan).values[value]
        shape = plan.entries[spot.entry].graph.tensor[v.tensor].shape
        for axis, state in v.layout.states:
            other = other_shard(state, shape) if isinstance(state, Shard) else None
            if other is not None:
                found.append((spot, value, axis, other))
    if not found:
        return None
    spot, value, axis, other = rng.choice(found)
    return relaid(plan, spot, value, axis, other)


def relaid(plan: Plan, spot: Spot, value: int, axis: str, state: State | None) -> Plan:
    layout: Layout = spot.program(plan).values[value].layout
    states: dict[str, Any] = {**dict(layout.states), axis: state}
    return with_value(plan, spot.entry, spot.role, value, layout=plan.space.layout(layout.mesh, states))


@injects("shard of another rank", "wrong region", *LAYOUT)
def shard_of_another_axis(plan: Plan, rng: random.Random) -> Plan | None:
    """Two axes change their shards: each worker has another's part."""
    found = []
    for spot in cutting(plan):
        value = spot.step(plan).dst
        states = spot.program(plan).values[value].layout.states
        pairs = [(a, b) for a in states for b in states if a < b and a[1] != b[1]] if len(states) > 1 else []
        if pairs:
            found.append((spot, value, pairs[0]))
    if not found:
        return None
    spot, value, ((a, first), (b, second)) = rng.choice(found)
    return relaid(relaid(plan, spot, value, a, second), spot, value, b, first)


@injects("wrong kind of partial", "wrong kind of partial", *LAYOUT, "not a term")
def wrong_kind(plan: Plan, rng: random.Random) -> Plan | None:
    """Terms of a sum are reduced as if they were to be maximised, or the other way round."""
    found = []
    for spot in spots(plan, Collective):
        value = spot.step(plan).src
        partial = spot.program(plan).values[value].layout.partial
        if len(partial) == 1 and partial[0] in spot.step(plan).axes:
            found.append((spot, value, partial[0]))
    if not found:
        return None
    spot, value, axis = rng.choice(found)
    kind = spot.program(plan).values[value].layout.state(axis).kind
    other = rng.choice([k for k in ("sum", "max", "min", "logsumexp") if k != kind])
    return relaid(plan, spot, value, axis, Partial(other))


@injects("counted by every rank", "wrong scale", *LAYOUT, "not a term", bug=11)
def counted_by_every_rank(plan: Plan, rng: random.Random) -> Plan | None:
    """What every rank has whole is summed over ranks as if each had a term."""
    found = []
    for spot in spots(plan, Call):
        program = spot.program(plan)
        kept = {b.value for b in program.buffers} | {*program.outputs.values(), *program.gradients.values()}
        for value in spot.step(plan).outs:
            layout = program.values[value].layout
            mesh = plan.space.mesh(layout.mesh)
            if set(mesh.devices) != set(program.workers):
                continue
            axes = [a for a in mesh.axes if plan.space.axis(a).ways > 1]
            later = program.blocks[spot.block].steps[spot.index + 1 :]
            read = any(value in getattr(s, "ins", ()) or getattr(s, "src", -1) == value for s in later)
            found += [(spot, value, a) for a in axes if layout.state(a) is None and value not in kept and read]
    if not found:
        return None
    spot, value, axis = rng.choice(found)
    return summed(plan, spot, value, axis)


def summed(plan: Plan, spot: Spot, value: int, axis: str) -> Plan:
    """With an all-reduce along ``axis`` behind the step that writes ``value``, in front of its readers."""
    program = spot.program(plan)
    layout: Layout = program.values[value].layout
    total = len(program.values)
    plan = with_program(plan, spot.entry, spot.role, values=(*program.values, program.values[value]))
    plan = relaid(plan, spot, value, axis, Partial())
    groupings = plan.entries[spot.entry].groupings
    plan = with_entry(plan, spot.entry, groupings=(*groupings, Grouping(plan.space.mesh(layout.mesh).lines((axis,)))))
    comm = 1 + max((s.step(plan).comm for s in spots(plan, Collective, Send, Recv)), default=0)
    reduce = Collective("all_reduce", value, total, (axis,), len(groupings), comm)

    def insert(steps: list[Step]) -> None:
        for i in range(spot.index + 1, len(steps)):
            steps[i] = renamed(steps[i], value, total)
        steps.insert(spot.index + 1, reduce)

    return with_steps(plan, spot, insert)


@injects("not masked", "wrong scale", *LAYOUT, bug=12)
def not_masked(plan: Plan, rng: random.Random) -> Plan | None:
    """A value that all ranks have goes into a sum over ranks as it is."""
    found = list(spots(plan, Mask))
    if not found:
        return None
    spot = rng.choice(found)
    step: Mask = spot.step(plan)
    return with_step(plan, spot, Slice(step.src, step.dst))


@injects("masked along the wrong axis", "wrong scale", *LAYOUT, "wrong group")
def masked_wrongly(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for spot in spots(plan, Mask):
        step: Mask = spot.step(plan)
        mesh = plan.space.mesh(spot.program(plan).values[step.src].layout.mesh)
        others = [a for a in mesh.axes if a not in step.axes and plan.space.axis(a).ways > 1]
        if others or len(step.axes) > 1:
            found.append((spot, (*step.axes, others[0]) if others else step.axes[1:]))
    if not found:
        return None
    spot, axes = rng.choice(found)
    return with_step(plan, spot, replace(spot.step(plan), axes=tuple(axes)))


@injects("sliced from the wrong value", "wrong region", "wrong tensor", "host value", *LAYOUT)
def sliced_from_another(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for spot in spots(plan, Slice):
        program = spot.program(plan)
        mine = program.values[spot.step(plan).src]
        held = [*program.state.values(), *program.inputs.values()]
        others = [v for v in held if program.values[v].tensor != mine.tensor]
        if others:
            found.append((spot, others))
    if not found:
        return None
    spot, others = rng.choice(found)
    return with_step(plan, spot, replace(spot.step(plan), src=rng.choice(others)))


# --- sums over time ---------------------------------------------------------------------------------------------------

SUMS = ("reduction too early", "missing value", "counted twice", "missing result", "not a term", "missing commit")


@injects("term left out", "sum over time", *SUMS, "partial read as complete", "written twice", "wrong result", bug=3)
def term_left_out(plan: Plan, rng: random.Random) -> Plan | None:
    """An Accumulate or Collect is missing: a micro-batch's share, a stage's share of a tied gradient, of the norm."""
    found = list(spots(plan, Accumulate, Collect))
    return with_step(plan, rng.choice(found)) if found else None


@injects("term twice", "sum over time", *SUMS)
def term_twice(plan: Plan, rng: random.Random) -> Plan | None:
    found = list(spots(plan, Accumulate))
    if not found:
        return None
    spot = rng.choice(found)
    return with_step(plan, spot, spot.step(plan), spot.step(plan))


@injects("one term for another", "sum over time", *SUMS, "wrong tensor", "wrong layout")
def wrong_term(plan: Plan, rng: random.Random) -> Plan | None:
    """One of a sum's terms is added twice, another not at all."""
    found = [s for s in spots(plan, Accumulate) if s.step(plan).term >= 0]
    pairs = [
        (a, b)
        for a in found
        for b in found
        if a[:3] == b[:3] and a != b and a.step(plan).into == b.step(plan).into and a.step(plan).src != b.step(plan).src
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    return with_step(plan, one, replace(one.step(plan), src=other.step(plan).src))


@injects(
    "added to another sum",
    "sum over time",
    *SUMS,
    "wrong tensor",
    "wrong layout",
    "no buffer",
    "partial read as complete",
    "complete read as partial",
)
def wrong_sum(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for spot in spots(plan, Accumulate):
        others = {
            s.step(plan).into for s in spots(plan, Accumulate) if (s.entry, s.role) == (spot.entry, spot.role)
        } - {spot.step(plan).into}
        if others:
            found.append((spot, sorted(others)))
    if not found:
        return None
    spot, others = rng.choice(found)
    return with_step(plan, spot, replace(spot.step(plan), into=rng.choice(others)))


# --- state and results ------------------------------------------------------------------------------------------------


@injects("missing commit", "missing commit", "missing commit")
def missing_commit(plan: Plan, rng: random.Random) -> Plan | None:
    found = list(spots(plan, Commit))
    return with_step(plan, rng.choice(found)) if found else None


@injects("wrong state committed", "missing commit", "wrong commit", "duplicated commit", "no buffer")
def wrong_commit(plan: Plan, rng: random.Random) -> Plan | None:
    """A state tensor is given another one's new content, of the same shape."""
    found = list(spots(plan, Commit))
    pairs = [(a, b) for a in found for b in found if a != b and a[:3] == b[:3]]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    return with_step(plan, one, replace(one.step(plan), src=other.step(plan).src))


@injects("old content committed", "missing commit", "wrong commit", "host value")
def commit_of_itself(plan: Plan, rng: random.Random) -> Plan | None:
    found = list(spots(plan, Commit))
    if not found:
        return None
    spot = rng.choice(found)
    return with_step(plan, spot, replace(spot.step(plan), src=spot.step(plan).state))


@injects("two parameters exchanged", "wrong local computation", "malformed plan")
def states_exchanged(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for name, entry in plan.entries.items():
        for role, program in enumerate(entry.programs):
            names = sorted(program.state)
            found += [(name, role, a, b) for a, b in pairwise(names)]
    if not found:
        return None
    name, role, a, b = rng.choice(found)
    state = plan.entries[name].programs[role].state
    return with_program(plan, name, role, state={**state, a: state[b], b: state[a]})


@injects("wrong result", "missing result", "wrong result", "missing result")
def wrong_result(plan: Plan, rng: random.Random) -> Plan | None:
    """A gradient or an output is another value than the Graph's."""
    found = []
    for name, entry in plan.entries.items():
        for role, program in enumerate(entry.programs):
            for table in ("outputs", "gradients"):
                for key, value in getattr(program, table).items():
                    tensor = program.values[value].tensor
                    others = [i for i, v in enumerate(program.values) if v.tensor != tensor]
                    found.append((name, role, table, key, others))
    name, role, table, key, others = rng.choice(found)
    changed = {**getattr(plan.entries[name].programs[role], table), key: rng.choice(others)}
    return with_program(plan, name, role, **{table: changed})


@injects("missing result", "missing result", "missing result")
def missing_result(plan: Plan, rng: random.Random) -> Plan | None:
    """No worker has a gradient or an output any more."""
    name = rng.choice(sorted(plan.entries))
    graph = plan.entries[name].graph
    table, key = rng.choice([*(("outputs", k) for k in graph.outputs), *(("gradients", k) for k in graph.gradients)])
    for role, program in enumerate(plan.entries[name].programs):
        kept = {k: v for k, v in getattr(program, table).items() if k != key}
        plan = with_program(plan, name, role, **{table: kept})
    return plan
