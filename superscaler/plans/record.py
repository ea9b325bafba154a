"""What a plan script has said, as the primitives put it down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from superscaler.errors import PlanError, UsageError
from superscaler.ir.argument import shown, whole
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Axis
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Split
from superscaler.ir.task import Turn
from superscaler.plans.assignment import Assignments
from superscaler.transforms.directives import MICRO, WORLD


@dataclass
class Record:
    """What was said of ``graph`` so far.

    ``anchors``, ``wishes``: (axis, op, how it is split along it). ``batch``: axis -> ways. ``sharded``: (axis,
    parameter, whether the parameter itself is). ``sequence``: ops that run before others in every micro-batch.
    """

    graph: Graph
    axes: dict[str, Axis] = field(default_factory=dict[str, Axis])
    anchors: list[tuple[str, str, Split | None]] = field(default_factory=list[tuple[str, str, "Split | None"]])
    wishes: list[tuple[str, str, Split]] = field(default_factory=list[tuple[str, str, Split]])
    batch: dict[str, int] = field(default_factory=dict[str, int])
    sharded: list[tuple[str, str, bool]] = field(default_factory=list[tuple[str, str, bool]])
    early: set[str] = field(default_factory=set[str])
    offloaded: set[str] = field(default_factory=set[str])
    turns: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    microbatches: int = 1
    assigned: Assignments = field(default_factory=Assignments)
    recompute: set[str] = field(default_factory=set[str])
    order: str = "1f1b"
    before: list[tuple[Turn, Turn]] = field(default_factory=list[tuple[Turn, Turn]])
    sequence: list[tuple[frozenset[str], frozenset[str]]] = field(
        default_factory=list[tuple[frozenset[str], frozenset[str]]]
    )
    _used: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])

    def declare(self, name: str, ways: int) -> None:
        """A mesh axis. Raises :class:`PlanError` if it has other ways already, or none, or if its name is taken."""
        _refuse_name(name)
        if whole(ways, f"the ways of axis {name!r}") < 1:
            raise PlanError(f"axis {name!r} must have at least one way, not {ways}", hint=f"{name}=1: not split")
        if name in self.axes and self.axes[name].ways != ways:
            raise PlanError(f"axis {name!r} has {self.axes[name].ways} ways, not {ways}",
                            hint="the same ways wherever the axis is named, or another name")  # fmt: skip
        self.axes.setdefault(name, Axis(name, ways, "space"))

    def take_turns(self, ops: Iterable[Op], ways: int, axis: str) -> None:
        """An axis of time along which the parts of ``ops`` run one after the other."""
        if whole(ways, "parts") < 1:
            raise PlanError(f"co-shard needs at least one part, not {ways}", hint="one part: nothing takes turns")
        _refuse_name(axis)
        if self.axes.setdefault(axis, Axis(axis, ways, "time")) != Axis(axis, ways, "time"):
            raise PlanError(f"axis {axis!r} is not one of {ways} turns: {self.axes[axis]}", hint="another name")
        self.turns.setdefault(axis, set()).update(op.name for op in ops)

    def next_digit(self, op: Op, dim: str, ways: int) -> Split:
        """A digit inside those by which the op's dim was said to be split before."""
        done = self._used.get((op.name, dim), 1)
        self._used[op.name, dim] = done * ways
        return self.digit(op, dim, ways, done)

    def digit(self, op: Op, dim: str, ways: int, done: int = 1) -> Split:
        """The digit by which an op's dim, split ``done`` ways already, is split ``ways`` further."""
        return Split(dim, *digit_of(rule_for(op, self.graph).dims[dim].size, ways, done))


def _refuse_name(axis: object) -> None:
    if not isinstance(axis, str) or not axis or axis in (MICRO, WORLD):
        taken = "" if axis not in (MICRO, WORLD) else ", which every plan has"
        raise UsageError(f"no axis can be called {shown(axis)}{taken}", hint='another name: "data", say')


def digit_of(size: int, ways: int, done: int = 1) -> tuple[int, int]:
    """The digit (extent, inner) by which a dim of ``size``, split ``done`` ways already, is split ``ways`` further.

    Even splits get a digit of their own, so that several nest in any order; uneven ones share the finest.
    """
    if size % (ways * done) == 0:
        return ways, size // (ways * done)
    if size % done == 0:
        return size // done, 1
    return size, 1
