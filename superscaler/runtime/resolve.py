"""Resolving a call: what an op's placeholders stand for on one worker, at one micro-batch.

Sizes are written into the body's code, so calls of equal local shapes share one body. What differs without changing a
shape (first indices, regions, keys of random numbers) is a parameter of the body; its value is a *binding* of the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superscaler.errors import RunError
from superscaler.ir.graph import Graph
from superscaler.ir.layout import Layout, Space
from superscaler.ir.program import Call, Definition, Row
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.part import Part, part_of_op
from superscaler.ir.rules.rule import op_layouts
from superscaler.runtime.ops import DTYPES

Coords = Mapping[str, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """One row of a definition with its sizes filled in. In ``args``, ``"$k"`` is operand k, ``"@n"`` the body's
    parameter n, ``"@seed"`` the (seed, step) of the run. ``shapes``: local shapes of its outputs."""

    target: str
    args: tuple[Any, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    shapes: tuple[Shape, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Resolved:
    """The lines of a call, the local shapes of its inputs, and the values of its parameters."""

    lines: tuple[Line, ...]
    shapes: tuple[Shape, ...]
    bindings: tuple[Any, ...]


class Resolver:
    """Resolves the calls of one entry."""

    def __init__(self, graph: Graph, space: Space) -> None:
        self.graph = graph
        self.space = space

    def call(self, definition: Definition, call: Call, coords: Coords) -> Resolved:
        """``coords``: the worker's indices along the axes of the call's mesh and along time."""
        bindings: list[Any] = []
        shapes: dict[int, Shape] = {}
        lines = [self._line(row, call, coords, bindings, shapes) for row in definition.rows]
        return Resolved(tuple(lines), tuple(shapes.get(i, ()) for i in range(definition.inputs)), tuple(bindings))

    def _line(self, row: Row, call: Call, coords: Coords, bindings: list[Any], shapes: dict[int, Shape]) -> Line:
        op = self.graph.ops[call.base + row.offset]
        if op.target != row.target or len(op.outputs) != len(row.outs) or len(op.inputs) != len(row.ins):
            raise RunError(f"the plan calls {row.target} where its graph has {op.target} ({op.name})")
        rule = rule_for(op, self.graph)
        in_layouts, out_layouts = op_layouts(rule, row.splits, call.mesh, self.space)
        for number, name, layout in zip(row.ins, op.inputs, in_layouts, strict=True):
            shapes.setdefault(number, self._shape(name, layout, coords))
        outs = tuple(self._shape(n, layout, coords) for n, layout in zip(op.outputs, out_layouts, strict=True))
        whole = self.graph.tensor[op.outputs[0]].shape
        part = part_of_op(rule, op, row.splits, self.space, coords, whole)
        args, kwargs = row.args, {}
        if args and isinstance(args[-1], dict):
            args, kwargs = args[:-1], args[-1]["kw"]
        named = tuple((k, _value(v, part, bindings)) for k, v in sorted(kwargs.items()))
        return Line(row.target, _sequence(args, part, bindings), row.ins, row.outs, outs, named)

    def _shape(self, tensor: str, layout: Layout, coords: Coords) -> Shape:
        return self.space.region(self.graph.tensor[tensor].shape, layout, coords).shape


def _sequence(values: Sequence[Any], part: Part, bindings: list[Any]) -> tuple[Any, ...]:
    return tuple(_value(v, part, bindings) for v in values)


def _value(arg: Any, part: Part, bindings: list[Any]) -> Any:
    if isinstance(arg, list | tuple):
        return _sequence(arg, part, bindings)  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(arg, str):
        return arg
    if arg.startswith("#"):
        return _placeholder(arg, part, bindings)
    return DTYPES.get(arg, arg)


def _placeholder(text: str, part: Part, bindings: list[Any]) -> Any:
    name, _, dim = text.partition(":")
    match name:
        case "#shape":
            return part.shape
        case "#local":
            return part.local[dim]
        case "#size":
            return part.size[dim]
        case "#start" if part.whole(dim):
            return None
        case "#start":
            bindings.append(part.start[dim])
        case "#region":
            bindings.append(part.region)
        case "#key":
            bindings.append(part.key)
        case "#seed":
            return "@seed"
        case _:
            raise RunError(f"unknown placeholder {text!r} in a plan's op")
    return f"@{len(bindings) - 1}"
