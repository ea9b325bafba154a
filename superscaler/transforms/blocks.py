"""Blocks being lowered: their names, their steps before ops are grouped into calls, and the tables they refer to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from superscaler.ir.layout import Layout
from superscaler.ir.program import At, BlockKind, Grouping, Lane, Route, Step, Value
from superscaler.ir.rules.rule import Splits
from superscaler.ir.task import TaskGraph

FREE = frozenset(
    {
        "superscaler.reshape",
        "superscaler.expand",
        "aten.permute.default",
        "superscaler.block",
        "superscaler.full",
        "superscaler.arange",
    }
)
"""Ops that are computed again wherever their result is read: views of what is there anyway, and constants."""


MODEL = ("forward", "backward", "weight", "recompute")
"""The kinds of block that run the model itself."""


FETCH, RETURN = "fetch:", "return:"
"""Tags of the transfers that bring state from host memory, and its new content back, by layer."""


class Key(NamedTuple):
    """Names a block: what kind, of which stage, on which mesh, in which segment; ``tag`` tells transfers apart."""

    kind: BlockKind
    stage: int
    mesh: str
    level: int = 0
    tag: str = ""


class Compute(msgspec.Struct, frozen=True):
    """One op before it is grouped into a call."""

    op: int
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    splits: Splits
    mesh: str
    at: At = ()


@dataclass
class Made:
    """The values that a block has made, by tensor and layout."""

    of: dict[str, dict[Layout, int]] = field(default_factory=dict)

    def __setitem__(self, what: tuple[str, Layout], number: int) -> None:
        tensor, layout = what
        self.of.setdefault(tensor, {})[layout] = number

    def get(self, tensor: str, layout: Layout) -> int | None:
        """The value of a tensor in a layout, if any."""
        return self.of.get(tensor, {}).get(layout)

    def all(self, tensor: str) -> dict[Layout, int]:
        """The values of a tensor, by layout."""
        return self.of.get(tensor, {})


@dataclass
class Body:
    """A block being filled."""

    key: Key
    over: tuple[str, ...]
    lane: Lane = "compute"
    steps: list[Step | Compute] = field(default_factory=list)
    here: Made = field(default_factory=Made)
    at: At = ()  # the turn being emitted, inside a run of ops that are split over turns
    turn: Made = field(default_factory=Made)  # what this turn has made

    def found(self, tensor: str, layout: Layout) -> int | None:
        """The value of ``tensor`` in ``layout`` that this block has made, if any."""
        known = self.turn.get(tensor, layout)
        return known if known is not None else self.here.get(tensor, layout)

    def versions(self, tensor: str) -> list[int]:
        """All values of ``tensor`` on its own mesh that this block has made."""
        return [
            v
            for made in (self.turn, self.here)
            for layout, v in made.all(tensor).items()
            if layout.mesh == self.key.mesh
        ]


@dataclass
class Lowered:
    """All blocks with the tables that they refer to; values are numbered across all meshes."""

    tasks: TaskGraph
    values: list[Value]
    bodies: dict[Key, Body]
    groupings: list[Grouping]
    routes: list[Route]
    inputs: dict[tuple[str, str], int]
    state: dict[str, int]
    outputs: dict[str, int]
    gradients: dict[str, int]
    comms: int


def layer_of(module: str) -> str:
    """The layer of a module path: up to its first number, or all of it if there is none."""
    parts = module.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: numbered + 1]) if numbered is not None else module
