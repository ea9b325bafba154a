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
from superscaler.ir.printing import program_text
from superscaler.ir.region import Interval
from superscaler.ir.rules.rule import Splits

At = tuple[tuple[str, int], ...]  # indices of time axes that are fixed inside a block (co-shards)


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


class Call(msgspec.Struct, frozen=True, tag="call", omit_defaults=True):
    """Run a definition on values. ``base``: index of the Graph's op that the definition's offsets count from."""

    definition: int
    base: int
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    mesh: str
    at: At = ()


class Slice(msgspec.Struct, frozen=True, tag="slice", omit_defaults=True):
    """Take the part of a value that another layout holds; no communication."""

    src: int
    dst: int
    at: At = ()


class Mask(msgspec.Struct, frozen=True, tag="mask", omit_defaults=True):
    """From replicated to a partial sum along ``axes``: kept at coordinate 0, zero elsewhere."""

    src: int
    dst: int
    axes: tuple[str, ...]
    at: At = ()


class Accumulate(msgspec.Struct, frozen=True, tag="accumulate", omit_defaults=True):
    """Add a term to a sum formed over time (micro-batches, co-shards) or over the inputs of an ``add_n``.

    The first term of a run of the entry is written, later ones are added, in ``into``'s own storage. ``term``: the
    number of the ``add_n`` input that ``src`` is, or -1 if ``into`` is the same logical tensor as ``src``.
    """

    src: int
    into: int
    term: int = -1
    at: At = ()


class Collect(msgspec.Struct, frozen=True, tag="collect", omit_defaults=True):
    """Write the part of one time index into the value that holds all of them."""

    src: int
    into: int
    at: At = ()


CollectiveKind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all"]


class Collective(msgspec.Struct, frozen=True, tag="collective", omit_defaults=True):
    """A collective over the groups of ``grouping`` (an index into the entry's groupings).

    ``axes``: the mesh axes along which the members of a group differ. ``comm``: the number of this communication in
    the entry; all members post the same number.
    """

    kind: CollectiveKind
    src: int
    dst: int
    axes: tuple[str, ...]
    grouping: int
    comm: int
    at: At = ()


class Send(msgspec.Struct, frozen=True, tag="send", omit_defaults=True):
    """Send the pieces of a value that ``route`` (an index into the entry's routes) takes from this worker."""

    src: int
    route: int
    comm: int
    at: At = ()


class Recv(msgspec.Struct, frozen=True, tag="recv", omit_defaults=True):
    """Receive the pieces that ``route`` brings to this worker, and assemble the value from them.

    ``local``: the value on this worker, if any, from which pieces with equal source and destination are taken.
    """

    dst: int
    route: int
    comm: int
    local: int = -1
    at: At = ()


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Make ``src`` the new content of the state value ``state``; if that lies in host memory, on the transfer lane."""

    src: int
    state: int


class Offload(msgspec.Struct, frozen=True, tag="offload"):
    """Copy a value between device and host memory (``to``), on the transfer lane."""

    src: int
    dst: int
    to: Literal["host", "device"]


Step = Call | Slice | Mask | Accumulate | Collect | Collective | Send | Recv | Commit | Offload

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
        return program_text(self)


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
