"""Steps: what the blocks of a Program consist of. Calls of shared definitions, moves of data, communications.

Values are numbers of the Program's table, written ``%3``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

At = tuple[tuple[str, int], ...]  # indices of time axes that are fixed inside a block (co-shards)


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


def values_text(values: Iterable[int]) -> str:
    """Values by their numbers."""
    return ", ".join(f"%{value}" for value in values)


def _at(at: At) -> str:
    return f" at {', '.join(f'{axis} = {index}' for axis, index in at)}" if at else ""


def step_text(step: Step) -> str:
    """A step as one line."""
    match step:
        case Call(definition, base, ins, outs, mesh, at):
            return f"call {definition} op {base} ({values_text(ins)}) -> ({values_text(outs)}) on {mesh}{_at(at)}"
        case Slice(src, dst, at):
            return f"slice %{src} -> %{dst}{_at(at)}"
        case Mask(src, dst, axes, at):
            return f"mask %{src} -> %{dst} along {', '.join(axes)}{_at(at)}"
        case Accumulate(src, into, term, at):
            return f"accumulate %{src} -> %{into}{f' term {term}' if term >= 0 else ''}{_at(at)}"
        case Collect(src, into, at):
            return f"collect %{src} -> %{into}{_at(at)}"
        case Collective(kind, src, dst, axes, grouping, comm, at):
            return f"{kind} %{src} -> %{dst} along {', '.join(axes)} grouping {grouping} comm {comm}{_at(at)}"
        case Send(src, route, comm, at):
            return f"send %{src} route {route} comm {comm}{_at(at)}"
        case Recv(dst, route, comm, local, at):
            return f"recv %{dst} route {route} comm {comm}{f' local %{local}' if local >= 0 else ''}{_at(at)}"
        case Commit(src, state):
            return f"commit %{src} -> %{state}"
        case Offload(src, dst, to):
            return f"offload %{src} -> %{dst} to {to}"
