"""The TaskGraph: every op of a Graph with its place (stage, meshes), its splits and the kind of task it belongs to."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import msgspec

from superscaler.ir.graph import Graph
from superscaler.ir.layout import Layout, Space
from superscaler.ir.program import BlockKind
from superscaler.ir.rules.rule import Splits

Turn = tuple[str, int, int]
"""A task of the model: its kind (forward, backward, weight), stage and micro-batch."""
Reason = Literal["script", "wish", "follows", "cost", ""]
"""Why an op is split as it is along an axis: the script says so, or prefers it; it follows what is around it; it moves
the fewest bytes; or nothing had to be decided."""


class Placement(msgspec.Struct, frozen=True):
    """One op's place. ``stages``: where it runs; several (on different meshes) mean that each of them computes it.

    ``splits``: how it is split, per axis. ``over``: time axes it is repeated over.
    """

    op: str
    stages: tuple[int, ...]
    kind: BlockKind
    splits: Splits = ()
    over: tuple[str, ...] = ()


class TaskGraph(msgspec.Struct, frozen=True, dict=True):
    """A Graph, split and assigned. ``placements`` stand in the order of the Graph's ops.

    ``stages``: the mesh of each stage. ``microaxis``: the time axis of micro-batches, or "". ``homes``: state and input
    tensors -> layout. ``recompute``: forward ops that the backward runs again. ``early``: gradients reduced in the task
    that makes them. ``hosted``: state tensors that lie in host memory. ``order``: the name of the schedule; ``before``:
    tasks that come before others of their devices; ``sequence``: forward ops all of which run before all of others.
    ``reasons``: per axis and op, why it is split so.
    """

    graph: Graph
    space: Space
    placements: tuple[Placement, ...]
    stages: tuple[str, ...]
    homes: dict[str, Layout]
    microaxis: str = ""
    recompute: frozenset[str] = frozenset()
    early: frozenset[str] = frozenset()
    hosted: frozenset[str] = frozenset()
    order: str = "1f1b"
    seed: int = 0
    before: tuple[tuple[Turn, Turn], ...] = ()
    sequence: tuple[tuple[frozenset[str], frozenset[str]], ...] = ()
    reasons: dict[str, dict[str, Reason]] = {}

    @cached_property
    def placed(self) -> dict[str, Placement]:
        """Placements by the name of their op."""
        return {p.op: p for p in self.placements}

    @property
    def microbatches(self) -> int:
        """In how many micro-batches the batch is run."""
        return self.space.axis(self.microaxis).ways if self.microaxis else 1
