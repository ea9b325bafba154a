"""What a plan puts where: ops and their parts on devices, and the stages and mesh axes that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import NamedTuple

from superscaler.errors import PlanError, SplitError
from superscaler.ir.graph import Graph, Op

WHOLE = ""
"""In place of a dim: each part is the whole op."""


@dataclass(frozen=True)
class Parts:
    """An op split along one dim after another: as many parts as the product of the ways, in row-major order."""

    op: Op
    splits: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return prod(ways for _, ways in self.splits)

    def __iter__(self) -> Iterator[Part]:
        return (Part(self, index) for index in range(len(self)))

    def __getitem__(self, index: int) -> Part:
        return Part(self, range(len(self))[index])


@dataclass(frozen=True)
class Part:
    """One of an op's parts."""

    parts: Parts
    index: int


class Factor(NamedTuple):
    """A split of an op along ``dim`` over the devices of ``axis``, or over its turns on a device (``time``)."""

    axis: str
    dim: str
    ways: int
    time: bool = False


class Place(NamedTuple):
    """Devices, row-major over the mesh axes."""

    devices: tuple[int, ...]
    axes: tuple[str, ...] = ()


Named = tuple[str, tuple[tuple[str, int], ...]]


@dataclass
class Assignments:
    """What was assigned so far. ``stages``: by the stage's number. ``loose``: parts of which nothing was assigned."""

    stages: dict[int, Place] = field(default_factory=dict[int, Place])
    parts: list[tuple[Parts, tuple[int, ...]]] = field(default_factory=list[tuple[Parts, tuple[int, ...]]])
    singly: dict[Named, tuple[Parts, dict[int, int]]] = field(default_factory=dict[Named, tuple[Parts, dict[int, int]]])
    loose: dict[str, Parts] = field(default_factory=dict[str, Parts])

    def awaited(self, parts: Parts) -> Parts:
        """Parts along no axis, which only count once they are assigned."""
        self.loose[parts.op.name] = parts
        return parts

    def add(self, parts: Parts, devices: tuple[int, ...]) -> None:
        """Zip the parts of an op with devices."""
        if len(parts) != len(devices):
            raise PlanError(
                f"{parts.op.name} has {len(parts)} parts for {len(devices)} devices",
                hint="assign zips parts and devices: give as many of each (p.replicate(op, ways): each the whole op)",
            )
        self.loose.pop(parts.op.name, None)
        self.parts.append((parts, devices))

    def add_part(self, part: Part, device: int) -> None:
        """Put one part of an op on a device; the others are to follow."""
        whole = part.parts
        self.loose.pop(whole.op.name, None)
        self.singly.setdefault((whole.op.name, whole.splits), (whole, {}))[1][part.index] = device

    def factors(self) -> Iterator[tuple[Op, Place, list[Factor]]]:
        """The ops assigned, where they lie, and the axes that their parts are split along.

        The axes of a list of devices are a chain of factors that the parts of all its ops refine to. Raises
        :class:`SplitError` if they do not, :class:`PlanError` for a part that is nowhere or devices shared unevenly.
        """
        for loose in self.loose.values():
            raise PlanError(
                f"{loose.op.name} has {len(loose)} parts, which are assigned to no device",
                loose.op.where,
                hint="p.assign(parts, devices), or split along axis=NAME",
            )
        lists: dict[tuple[int, ...], list[tuple[Op, list[Factor]]]] = {}
        for parts, devices in [*self.parts, *map(_together, self.singly.values())]:
            distinct = tuple(dict.fromkeys(devices))
            lists.setdefault(distinct, []).append((parts.op, _pieces(parts, devices, len(distinct))))
        for devices, found in lists.items():
            marks = sorted({1, len(devices)} | {m for _, pieces in found for m in _marks(pieces)})
            for a, b in pairwise(marks):
                if b % a:
                    raise SplitError(
                        f"ops on {len(devices)} devices are split {a} and {b} ways, which do not nest",
                        hint="numbers of parts of which one divides the other",
                    )
            place = Place(devices, tuple(_name(a, b) for a, b in pairwise(marks)))
            for op, pieces in found:
                yield op, place, list(_refined(pieces, marks))


def _together(singly: tuple[Parts, dict[int, int]]) -> tuple[Parts, tuple[int, ...]]:
    parts, devices = singly
    missing = [i for i in range(len(parts)) if i not in devices]
    if missing:
        raise PlanError(
            f"part {missing[0]} of {len(parts)} of {parts.op.name} is assigned to no device", hint="every part on one"
        )
    return parts, tuple(devices[i] for i in range(len(parts)))


def _pieces(parts: Parts, devices: tuple[int, ...], distinct: int) -> list[Factor]:
    """The splits of an op, cut where those over devices end and those over turns on a device begin, or the reverse."""
    turns = len(devices) // distinct
    inside = devices == tuple(d for d in dict.fromkeys(devices) for _ in range(turns))
    if not inside and devices != tuple(dict.fromkeys(devices)) * turns:
        raise PlanError(
            f"the parts of {parts.op.name} share devices unevenly: {list(devices)}",
            hint="as many parts on each device, its own next to each other or one round after another",
        )
    room = [(distinct, False), (turns, True)] if inside else [(turns, True), (distinct, False)]
    found: list[Factor] = []
    for dim, ways in parts.splits:
        left = ways
        while left > 1:
            (free, time), *rest = room
            taken = min(free, left)
            if free % taken or left % taken:
                raise SplitError(
                    f"{parts.op.name}: {left} parts along {dim!r} do not nest with {free} devices or turns",
                    hint="a number of parts that is a multiple or a divisor of the devices",
                )
            if taken > 1:
                found.append(Factor("", dim, taken, time))
            room = [(free // taken, time), *rest] if free > taken else rest
            left //= taken
    return found


def _marks(pieces: Iterable[Factor]) -> list[int]:
    """The products of the ways over devices, one factor after another."""
    marks = [1]
    for piece in pieces:
        if not piece.time:
            marks.append(marks[-1] * piece.ways)
    return marks


def _refined(pieces: Iterable[Factor], marks: list[int]) -> Iterator[Factor]:
    """Each split over devices as those of the factors between ``marks`` that it consists of."""
    done = 1
    for piece in pieces:
        if piece.time:
            yield piece._replace(axis=f"turn{piece.ways}")
            continue
        for a, b in pairwise(marks):
            if done <= a and b <= done * piece.ways:
                yield Factor(_name(a, b), piece.dim, b // a)
        done *= piece.ways


def _name(before: int, after: int) -> str:
    return f"x{before}_{after // before}"


def runs(
    ops: Sequence[Op], own: Place | None, where: Mapping[str, Place], graph: Graph, spare: Callable[[], Place]
) -> list[tuple[Place, list[Op]]]:
    """A stage's ops in runs of one place each: its ``own``, or with none that of the ops before that have one.

    ``where``: the ops that were assigned by themselves. ``spare``: where a stage goes of which nothing was assigned.
    Ops that follow from parameters alone (transposed weights, say) are where they are read.
    """
    first = next((where[op.name] for op in ops if op.name in where), None)
    place = own or first or spare()
    if first is None:
        return [(place, list(ops))]
    if own is not None and not own.axes:
        named = next((p for p in map(where.get, (op.name for op in ops)) if p and p.devices == own.devices), own)
        own = place = named
    found: list[tuple[Place, list[Op]]] = []
    run_of: dict[str, int] = {}
    steady = _of_state(ops, graph)
    for op in ops:
        if op.name in steady and op.name not in where:
            continue
        place = where.get(op.name) or own or place
        if not found or found[-1][0] != place:
            found.append((place, []))
        found[-1][1].append(op)
        run_of[op.name] = len(found) - 1
    for op in reversed(ops):
        if op.name not in run_of:
            readers = [run_of[c.name] for name in op.outputs for c in graph.consumers[name] if c.name in run_of]
            run_of[op.name] = min(readers, default=0)
            found[run_of[op.name]][1].append(op)
    return found


def _of_state(ops: Iterable[Op], graph: Graph) -> set[str]:
    """The ops that read nothing but state and each other."""
    found: set[str] = set()
    for op in ops:
        sources = [graph.producer.get(name) for name in op.inputs]
        if all(
            source.name in found if source is not None else graph.tensor[name].kind != "input"
            for name, source in zip(op.inputs, sources, strict=True)
        ):
            found.add(op.name)
    return found


__all__ = ["WHOLE", "Assignments", "Factor", "Part", "Parts", "Place", "runs"]
