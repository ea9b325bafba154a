"""Directives: what a plan says about a graph, in the form that placing takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from superscaler.ir.layout import Axis, Shard
from superscaler.ir.rules.rule import Split
from superscaler.ir.task import Turn

MICRO = "micro"
"""The time axis of micro-batches."""
WORLD = "world"
"""The mesh of all devices, where stages have different ones, and its axis."""


@dataclass(frozen=True)
class StageSpec:
    """One stage: the forward ops it has, its devices (row-major over its axes) and the axes' names."""

    ops: frozenset[str]
    devices: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass
class Directives:
    """What a plan says, in the order in which it says it.

    ``axes``: name -> ways (or explicit part sizes). ``anchors``: (axis, op, split), binding; ``wishes``: the same,
    taken one by one where nothing else has decided by then. ``homes``: (axis, tensor, shard). ``sharded``: (axis,
    parameter, whether the parameter itself is kept in shards too): its optimizer's state and step are. ``early``:
    parameters whose gradients are reduced as soon as they are there, not after all micro-batches.
    ``turns``: time axis -> forward ops that may be split along it, into parts that take turns on their device.
    ``before``: tasks that come before others; ``sequence``: forward ops all of which run before all of others.
    """

    stages: list[StageSpec]
    axes: dict[str, Axis] = field(default_factory=dict)
    anchors: list[tuple[str, str, Split | None]] = field(default_factory=list)
    wishes: list[tuple[str, str, Split]] = field(default_factory=list)
    homes: list[tuple[str, str, Shard]] = field(default_factory=list)
    sharded: list[tuple[str, str, bool]] = field(default_factory=list)
    early: frozenset[str] = frozenset()
    offloaded: frozenset[str] = frozenset()
    turns: dict[str, frozenset[str]] = field(default_factory=dict)
    microbatches: int = 1
    micro_homes: list[tuple[str, Shard]] = field(default_factory=list)
    recompute: frozenset[str] = frozenset()
    order: str = "1f1b"
    before: tuple[tuple[Turn, Turn], ...] = ()
    sequence: tuple[tuple[frozenset[str], frozenset[str]], ...] = ()
    split_weight: bool = False
    seed: int = 0
