"""Printing: Graphs and Programs as text that people read and ``parsing`` reads back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from superscaler.ir import text

if TYPE_CHECKING:
    from superscaler.ir.graph import Graph, Op, Tensor
    from superscaler.ir.program import At, Block, Program, Step, Value

_PLAIN = re.compile(r"[A-Za-z_][\w./*@-]*")


def name_text(name: str) -> str:
    """A name, quoted if it could be taken for something else."""
    return name if _PLAIN.fullmatch(name) else msgspec.json.encode(name).decode()


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(name_text, names))


# --- graphs -----------------------------------------------------------------------------------------------------------


def graph_text(graph: Graph) -> str:
    """One line per tensor that is there beforehand, per op, and per result."""
    written = {name for op in graph.ops for name in op.outputs}
    lines = ["graph"]
    lines += [f"  {_tensor(t, inputs=graph.inputs)}" for t in graph.tensors if t.name not in written]
    lines += [f"  {_op(graph, op)}" for op in graph.ops]
    lines += [f"  inputs {_names(graph.inputs)}"] if graph.inputs else []
    for what, table in (("output", graph.outputs), ("gradient", graph.gradients), ("update", graph.updates)):
        lines += [f"  {what} {name_text(name)} = {name_text(tensor)}" for name, tensor in table.items()]
    return "\n".join(lines)


def _type(tensor: Tensor) -> str:
    return f"{name_text(tensor.name)}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _tensor(tensor: Tensor, *, inputs: tuple[str, ...]) -> str:
    return f"{tensor.kind} {_type(tensor)}"


def _op(graph: Graph, op: Op) -> str:
    outs = ", ".join(_type(graph.tensor[name]) for name in op.outputs)
    args = text.dump(list(op.args))[1:-1]
    more = msgspec.to_builtins(op)
    for shown in ("target", "inputs", "outputs", "args"):
        more.pop(shown, None)
    return f"{outs} = {op.target}({args}) of {_names(op.inputs)}  # {msgspec.json.encode(more).decode()}"


# --- programs ---------------------------------------------------------------------------------------------------------


def program_text(program: Program) -> str:
    """Values, blocks with their steps, the order of tasks, and the plan of memory."""
    lines = [f"program of workers {' '.join(map(str, program.workers))}"]
    lines += [f"  %{i} = {_value(value)}" for i, value in enumerate(program.values)]
    for what, table in (
        ("input", program.inputs), ("state", program.state), ("output", program.outputs),
        ("gradient", program.gradients),
    ):  # fmt: skip
        lines += [f"  {what} {name_text(name)} = %{value}" for name, value in table.items()]
    for number, block in enumerate(program.blocks):
        lines.append(f"  block {number}: {_block(block)}")
        lines += [f"    {step_text(step)}" for step in block.steps]
    for item in program.order:
        frees = f" frees {item.frees}" if item.frees >= 0 else ""
        lines.append(f"  run {item.block}.{item.microbatch} at {item.start}..{item.end}{frees}")
    lines += [f"  free {i}: {_values(values)}" for i, values in enumerate(program.frees)]
    lines += [f"  buffer %{b.value}: {b.size} at {' '.join(map(str, b.offsets))}" for b in program.buffers]
    lines.append(f"  arena {program.arena} peak {program.peak}")
    return "\n".join(lines)


def _values(values: Iterable[int]) -> str:
    return ", ".join(f"%{value}" for value in values)


def _value(value: Value) -> str:
    over = f" over {', '.join(value.over)}" if value.over else ""
    terms = f" terms {' '.join(map(str, value.terms))}" if value.terms else ""
    return f"{name_text(value.tensor)} as {value.layout}{over}{terms}"


def _block(block: Block) -> str:
    over = f" over {', '.join(block.over)}" if block.over else ""
    return f"{name_text(block.name)} is {block.kind} on {block.mesh}{over} lane {block.lane} stage {block.stage}"


def _at(at: At) -> str:
    return f" at {', '.join(f'{axis} = {index}' for axis, index in at)}" if at else ""


def step_text(step: Step) -> str:
    """A step as one line."""
    fields: dict[str, Any] = {name: getattr(step, name) for name in step.__struct_fields__}
    at = _at(fields.get("at", ()))
    match type(step).__name__:
        case "Call":
            ins, outs = _values(fields["ins"]), _values(fields["outs"])
            return f"call {fields['definition']} op {fields['base']} ({ins}) -> ({outs}) on {fields['mesh']}{at}"
        case "Collective":
            axes = ", ".join(fields["axes"])
            moved = f"%{fields['src']} -> %{fields['dst']} along {axes}"
            return f"{fields['kind']} {moved} grouping {fields['grouping']} comm {fields['comm']}{at}"
        case "Send":
            return f"send %{fields['src']} route {fields['route']} comm {fields['comm']}{at}"
        case "Recv":
            local = f" local %{fields['local']}" if fields["local"] >= 0 else ""
            return f"recv %{fields['dst']} route {fields['route']} comm {fields['comm']}{local}{at}"
        case "Mask":
            return f"mask %{fields['src']} -> %{fields['dst']} along {', '.join(fields['axes'])}{at}"
        case "Offload":
            return f"offload %{fields['src']} -> %{fields['dst']} to {fields['to']}"
        case kind:
            into = fields.get("dst", fields.get("into", fields.get("state")))
            term = f" term {fields['term']}" if fields.get("term", -1) >= 0 else ""
            return f"{kind.lower()} %{fields['src']} -> %{into}{term}{at}"
