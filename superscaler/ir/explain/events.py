"""What happens to one tensor: every step of every role that makes, reads or moves it, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from superscaler.ir.check.fault import workers_text
from superscaler.ir.entry import Contents, Entry
from superscaler.ir.explain.words import layout_words
from superscaler.ir.graph import Op
from superscaler.ir.layout import Layout, Partial
from superscaler.ir.program import (
    Accumulate,
    Block,
    Call,
    Collect,
    Collective,
    Commit,
    Mask,
    Offload,
    Program,
    Recv,
    Row,
    Send,
    Slice,
    Step,
)  # fmt: skip
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import op_layouts

COLLECTIVES = {
    "all_reduce": "all-reduced",
    "reduce_scatter": "reduced and scattered",
    "all_gather": "gathered",
    "all_to_all": "exchanged",
}


@dataclass(frozen=True)
class Event:
    """``verb``: makes, reads or moves. ``what``: in words, without who and when. ``op``: of a call's row."""

    entry: str
    program: Program
    block: Block
    verb: str
    what: str
    op: Op | None = None
    row: Row | None = None
    mesh: str = ""

    @property
    def often(self) -> str:
        """Whether it happens in each micro-batch or once."""
        return "per micro-batch" if self.block.over else "once a step"

    @property
    def line(self) -> str:
        """Who does it, in which block, how often, and what."""
        return f"{workers_text(self.program.workers)}, {self.block.name}, {self.often}: {self.what}"


def events(plan: Contents, tensors: set[str]) -> Iterator[Event]:
    """Everything that happens to the tensors, entry by entry, role by role, in order."""
    for name, entry in plan.entries.items():
        for program in entry.programs:
            seen: set[int] = set()
            for item in program.order:
                if item.block not in seen:
                    seen.add(item.block)
                    yield from _of_block(plan, name, entry, program, program.blocks[item.block], tensors)


def _of_block(
    plan: Contents, name: str, entry: Entry, program: Program, block: Block, tensors: set[str]
) -> Iterator[Event]:
    for step in block.steps:
        if isinstance(step, Call):
            for row in entry.definitions[step.definition].rows:
                op = entry.graph.ops[step.base + row.offset]
                ins, outs = op_layouts(rule_for(op, entry.graph), row.splits, step.mesh, plan.space)
                for tensor, layout in zip(op.outputs, outs, strict=True):
                    if tensor in tensors:
                        words = layout_words(layout, plan.space)
                        yield Event(name, program, block, "makes", f"{op.name} makes it, {words}", op, row, step.mesh)
                for tensor, layout in dict(zip(op.inputs, ins, strict=True)).items():
                    if tensor in tensors:
                        words = layout_words(layout, plan.space)
                        yield Event(name, program, block, "reads", f"{op.name} reads it, {words}", op, row, step.mesh)
            continue
        value = step.dst if isinstance(step, Recv) else step.src
        if program.values[value].tensor in tensors:
            yield Event(name, program, block, "moves", _moved(plan, entry, program, block, step))


def _moved(plan: Contents, entry: Entry, program: Program, block: Block, step: Step) -> str:
    def lies(value: int) -> str:
        return layout_words(program.values[value].layout, plan.space)

    match step:
        case Collective():
            groups = entry.groupings[step.grouping].groups
            group = next((g for g in groups if program.workers[0] in g), groups[0])
            more = f" and {len(groups) - 1} groups alike" if len(groups) > 1 else ""
            what = f"{COLLECTIVES[step.kind]} over {workers_text(group)}{more}, then {lies(step.dst)}"
            return what + _because(entry, program, block, step.src, step.dst, plan)
        case Send() | Recv():
            return _sent(entry, program, step)
        case Slice():
            return f"a part of it is taken: {lies(step.dst)}" + _because(entry, program, block, -1, step.dst, plan)
        case Mask():
            return f"kept by one worker of each line, {lies(step.dst)}: so that it counts once in a sum"
        case Accumulate():
            into = program.values[step.into].tensor
            what = f"term {step.term} of {into!r}" if step.term >= 0 else "the sum over micro-batches"
            return f"added to {what}"
        case Collect():
            return "written into the tensor of all micro-batches"
        case Commit():
            state = program.values[step.state].tensor
            return f"becomes the new content of {state!r}"
        case Offload():
            return f"copied to the {step.to}"
        case Call():
            raise AssertionError


def _sent(entry: Entry, program: Program, step: Send | Recv) -> str:
    route, mine = entry.routes[step.route], set(program.workers)
    pieces = [p for p in route.pieces if p.source != p.destination]
    if isinstance(step, Send):
        peers = tuple(sorted({p.destination for p in pieces if p.source in mine}))
        return f"sent to {workers_text(peers)}, which lack it" if peers else "sent to nobody: who reads it has it"
    peers = tuple(sorted({p.source for p in pieces if p.destination in mine}))
    return f"received from {workers_text(peers)}" if peers else "taken from what the worker has itself"


def _because(entry: Entry, program: Program, block: Block, src: int, dst: int, plan: Contents) -> str:
    """Why a tensor is brought from one layout into another: who left it so, and who needs it so."""
    reader = _reader(entry, program, block, dst)
    needs = f"{reader} needs it so" if reader else "it is used so later"
    if src < 0:
        return f": {needs}"
    have: Layout = program.values[src].layout
    producer = entry.graph.producer.get(program.values[src].tensor)
    who = producer.name if producer is not None else "its home"
    left = "terms of a sum" if any(isinstance(s, Partial) for _, s in have.states) else layout_words(have, plan.space)
    return f": {who} leaves {left}, {needs}"


def _reader(entry: Entry, program: Program, block: Block, value: int) -> str | None:
    """The first op that reads a value, in its own block or in any other."""
    for step in (*block.steps, *(s for b in program.blocks if b is not block for s in b.steps)):
        if isinstance(step, Call) and value in step.ins:
            local = step.ins.index(value)
            for row in entry.definitions[step.definition].rows:
                if local in row.ins:
                    return entry.graph.ops[step.base + row.offset].name
        elif not isinstance(step, Call | Recv) and step.src == value:
            return "the state" if isinstance(step, Commit) else "another stage" if isinstance(step, Send) else None
    return None
