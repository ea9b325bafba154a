"""Programs: what each worker executes, as data. One Program per *role*, shared by all workers that do the same.

A Program is a list of :class:`Item` (a block, at a micro-batch) in the order in which a worker runs them. A
:class:`Block` is a Task's body: calls of shared definitions, and moves of data. What differs between the workers of a
role follows from their coordinates on the meshes: regions, group members and peers are computed, never repeated.

A value is a logical tensor in a layout. A value *over* a time axis has one instance per index of that axis; one without
has a single instance per run of the entry.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from superscaler.ir.layout import Layout
from superscaler.ir.names import name_text
from superscaler.ir.region import Interval
from superscaler.ir.rules.rule import Splits
from superscaler.ir.steps import (
    Accumulate,
    At,
    Call,
    Collect,
    Collective,
    CollectiveKind,
    Commit,
    Mask,
    Offload,
    Recv,
    Send,
    Slice,
    Step,
    step_text,
    values_text,
)


class Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """A logical tensor held in a layout.

    ``over``: the time axes of which it has an instance each. ``terms``: for a sum still being formed (``add_n``), the
    numbers of the inputs it has so far; empty: all.
    """

    tensor: str
    layout: Layout
    over: tuple[str, ...] = ()
    terms: tuple[int, ...] = ()


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One op of a definition. ``offset``: its op's index in the Graph, from the call's ``base``. Operands are local
    numbers: the definition's inputs first, then each row's outputs in turn."""

    offset: int
    target: str
    args: tuple[Any, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    splits: Splits


class Definition(msgspec.Struct, frozen=True):
    """A sequence of ops that several tasks share: equal layers have one definition."""

    inputs: int
    rows: tuple[Row, ...]
    outs: tuple[int, ...]


BlockKind = Literal[
    "prologue", "per_step", "forward", "backward", "weight", "recompute", "reduce", "optimizer", "send", "recv",
    "collective", "transfer",
]  # fmt: skip
Lane = Literal["compute", "comm", "transfer"]


class Block(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a Task. ``over``: the time axes it has an instance for each index of (at most one: micro-batches)."""

    name: str
    kind: BlockKind
    mesh: str
    steps: tuple[Step, ...]
    over: tuple[str, ...] = ()
    lane: Lane = "compute"
    stage: int = 0


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One Task in a worker's order: a block, its micro-batch (0 for a block without), its planned start and end in
    microseconds, and the free set (an index into the Program's) released after it, or -1."""

    block: int
    microbatch: int
    start: int
    end: int
    frees: int = -1


class Buffer(msgspec.Struct, frozen=True, array_like=True):
    """Where a value that outlives its task lies in the worker's arena: one byte offset per instance, and its size."""

    value: int
    size: int
    offsets: tuple[int, ...]


class Program(msgspec.Struct, frozen=True):
    """What the workers of one role run in one entry.

    ``inputs``, ``outputs``, ``gradients``: names -> values (those held by this role). ``state``: state tensor -> value.
    ``frees``: sets of values whose memory is released together.
    """

    workers: tuple[int, ...]
    values: tuple[Value, ...]
    blocks: tuple[Block, ...]
    order: tuple[Item, ...]
    frees: tuple[tuple[int, ...], ...]
    inputs: dict[str, int]
    state: dict[str, int]
    outputs: dict[str, int]
    gradients: dict[str, int]
    buffers: tuple[Buffer, ...] = ()
    arena: int = 0
    peak: int = 0

    def __str__(self) -> str:
        return _text(self)


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A product of intervals of a tensor that goes from one worker to another (or stays, if they are equal).

    Time axes are taken whole here: at a micro-batch, what goes is the piece cut with the value's region there.
    """

    source: int
    destination: int
    region: tuple[tuple[Interval, ...], ...]


class Route(msgspec.Struct, frozen=True):
    """A transfer between two layouts on different meshes: who sends which piece to whom."""

    tensor: str
    source: Layout
    destination: Layout
    pieces: tuple[Piece, ...]


class Grouping(msgspec.Struct, frozen=True):
    """Disjoint groups of workers that run one collective each at the same time."""

    groups: tuple[tuple[int, ...], ...]


# --- as text ----------------------------------------------------------------------------------------------------------


def _text(program: Program) -> str:
    """Values, blocks with their steps, the order of tasks, and the plan of memory."""
    lines = [f"program of workers {' '.join(map(str, program.workers))}"]
    lines += [f"  %{i} = {_value_text(value)}" for i, value in enumerate(program.values)]
    for what, table in (
        ("input", program.inputs), ("state", program.state), ("output", program.outputs),
        ("gradient", program.gradients),
    ):  # fmt: skip
        lines += [f"  {what} {name_text(name)} = %{value}" for name, value in table.items()]
    for number, block in enumerate(program.blocks):
        lines.append(f"  block {number}: {_block_text(block)}")
        lines += [f"    {step_text(step)}" for step in block.steps]
    for item in program.order:
        frees = f" frees {item.frees}" if item.frees >= 0 else ""
        lines.append(f"  run {item.block}.{item.microbatch} at {item.start}..{item.end}{frees}")
    lines += [f"  free {i}: {values_text(values)}" for i, values in enumerate(program.frees)]
    lines += [f"  buffer %{b.value}: {b.size} at {' '.join(map(str, b.offsets))}" for b in program.buffers]
    lines.append(f"  arena {program.arena} peak {program.peak}")
    return "\n".join(lines)


def _value_text(value: Value) -> str:
    over = f" over {', '.join(value.over)}" if value.over else ""
    terms = f" terms {' '.join(map(str, value.terms))}" if value.terms else ""
    return f"{name_text(value.tensor)} as {value.layout}{over}{terms}"


def _block_text(block: Block) -> str:
    over = f" over {', '.join(block.over)}" if block.over else ""
    return f"{name_text(block.name)} is {block.kind} on {block.mesh}{over} lane {block.lane} stage {block.stage}"


__all__ = [
    "Accumulate",
    "At",
    "Block",
    "BlockKind",
    "Buffer",
    "Call",
    "Collect",
    "Collective",
    "CollectiveKind",
    "Commit",
    "Definition",
    "Grouping",
    "Item",
    "Lane",
    "Mask",
    "Offload",
    "Piece",
    "Program",
    "Recv",
    "Route",
    "Row",
    "Send",
    "Slice",
    "Step",
    "Value",
]
