"""Structure of a Graph: names, shapes, and a rule for every op."""

from __future__ import annotations

from typing import Any

from superscaler.errors import CheckError
from superscaler.ir.check import limits
from superscaler.ir.check.fault import fault
from superscaler.ir.check.scope import Scope
from superscaler.ir.check.spaces import check_tensor
from superscaler.ir.entry import REASONS
from superscaler.ir.graph import Op


def check_graph(scope: Scope) -> None:
    """The Graph is well formed and every op may run. Raises :class:`Fault`."""
    graph = scope.graph
    if len(graph.op) != len(graph.ops):
        raise fault("malformed plan", "two ops of the graph have one name", scope.place())
    for tensor in graph.tensors:
        check_tensor(tensor.name, tensor.shape, tensor.dtype)
    _check_names(scope)
    try:
        graph.verify()
    except CheckError as e:
        raise fault("malformed plan", e.what, scope.place(), *e.details) from e
    for index, op in enumerate(graph.ops):
        _check_operands(scope, op)
        scope.rule(index)
    for axis, letters in scope.entry.reasons.items():
        if len(letters) != len(graph.ops) or not set(letters) <= {*REASONS.values()}:
            raise fault("malformed plan", f"the reasons along {axis!r} are not those of its ops", scope.place())


def _check_names(scope: Scope) -> None:
    graph = scope.graph
    for name in graph.inputs:
        tensor = graph.tensor.get(name)
        if tensor is None or tensor.kind != "input":
            raise fault("malformed plan", f"the graph's input {name!r} is no input tensor", scope.place())
    states = {tensor.name for tensor in graph.state()}
    for name in (*graph.updates, *graph.gradients):
        if name not in states:
            raise fault("malformed plan", f"the graph updates or derives by {name!r}, which is no state", scope.place())
    for op in graph.ops:
        for name in op.outputs:
            if name in graph.tensor and graph.tensor[name].kind != "activation":
                raise fault("malformed plan", f"op {op.name} writes {name!r}, which is no activation", scope.place())


def _check_operands(scope: Scope, op: Op) -> None:
    """``"$k"`` in the arguments names inputs that there are."""
    try:
        found = scalars(op.args, limits.DEPTH)
    except ValueError:
        what = f"the arguments of op {op.name} are nested too deeply"
        raise fault("malformed plan", what, scope.place()) from None
    for arg in found:
        if isinstance(arg, str) and arg[:1] == "$" and arg[1:].isdecimal() and int(arg[1:8]) >= len(op.inputs):
            raise fault("malformed plan", f"op {op.name} has no input {arg[:20]}", scope.place())


def scalars(args: Any, deep: int) -> list[Any]:
    """All scalars of nested arguments; raises :class:`ValueError` if they are nested more than ``deep`` times."""
    if deep < 0:
        raise ValueError
    found: list[Any] = []
    for arg in args.values() if isinstance(args, dict) else args:
        if isinstance(arg, list | tuple | dict):
            found += scalars(arg, deep - 1)
        else:
            found.append(arg)
    return found
