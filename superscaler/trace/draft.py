"""The Graph while it is being written: values, ops, and a builder that shares equal ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch

from superscaler.errors import TraceError
from superscaler.ir.graph import Kind

Shape = tuple[int, ...]
Number = int | float | bool


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Origin:
    """What the ops of one FX node inherit from it. ``seq``: the number that a backward node shares with its forward."""

    phase: Literal["forward", "backward"] = "forward"
    module: str = ""
    function: str = ""
    source: str = ""
    seq: tuple[int | None, int] | None = None
    accumulates: bool = False


@dataclass(eq=False, slots=True)
class Value:
    """A tensor. ``fill``: the one value of all its elements, where that is known. ``name``: of inputs and state.

    ``absent``: it stands for a gradient that does not exist.
    """

    shape: Shape
    dtype: str
    op: DraftOp | None = None
    fill: Number | None = None
    name: str = ""
    state: bool = False
    absent: bool = False

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def floating(self) -> bool:
        return "float" in self.dtype


@dataclass(eq=False, slots=True)
class DraftOp:
    """An op whose name is not given yet. ``twin``: the forward op that it is the backward of, where that is certain."""

    target: str
    args: tuple[Any, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origin: Origin
    index: int
    twin: DraftOp | None = None


Like = tuple[Shape, str]  # the shape and dtype of an output

VIEWS = frozenset({"superscaler.reshape", "superscaler.expand", "aten.permute.default", "superscaler.block"})


@dataclass
class Builder:
    """Appends ops. ``origin`` is that of the node being lowered; ``sites`` are ops that a later node refers to.

    ``scope``: the number of the region being written, since sites are numbered anew in each.
    """

    origin: Origin = field(default_factory=Origin)
    scope: int | None = None
    ops: list[DraftOp] = field(default_factory=list[DraftOp])
    sites: dict[Any, DraftOp] = field(default_factory=dict[Any, DraftOp])
    _shared: dict[Any, DraftOp] = field(default_factory=dict[Any, DraftOp])

    def ops_of(self, target: str, args: Sequence[Any], *likes: Like, twin: DraftOp | None = None) -> DraftOp:
        """The op ``target(*args)``; values anywhere in ``args`` become its inputs. An equal op is shared."""
        inputs: list[Value] = []
        template = tuple(_template(arg, inputs) for arg in args)
        key = self._key(target, template, inputs, likes)
        found = self._shared.get(key) if twin is None else None
        if found is None:
            outputs = tuple(Value(shape, dtype) for shape, dtype in likes)
            found = DraftOp(target, template, tuple(inputs), outputs, self.origin, len(self.ops), twin)
            for output in outputs:
                output.op = found
            self.ops.append(found)
            if twin is None and "#seed" not in template:
                self._shared[key] = found
        return found

    def op(self, target: str, args: Sequence[Any], like: Like, *, twin: DraftOp | None = None) -> Value:
        """The one output of :meth:`ops_of`."""
        return self.ops_of(target, args, like, twin=twin).outputs[0]

    def _key(self, target: str, template: tuple[Any, ...], inputs: list[Value], likes: tuple[Like, ...]) -> Any:
        # Views are shared wherever they stand; of state even between the phases, since state is kept anyway. Other ops
        # only within their module, so that equal layers stay equal and no stage waits for another's constants.
        view = target in VIEWS
        phase = "" if view and all(v.state for v in inputs) else self.origin.phase
        module = "" if view else self.origin.module
        return target, repr(template), tuple(id(v) for v in inputs), likes, phase, module

    def full(self, shape: Shape, value: Number, dtype: str) -> Value:
        """A tensor of one value."""
        out = self.op("superscaler.full", ["#shape", value, dtype], (shape, dtype))
        out.fill = value
        return out


@dataclass
class Draft:
    """A Graph not yet named. ``given``: inputs and state in order, with their kinds; results by name.

    ``held``: names of state that is neither parameter nor buffer. ``by_seq``: forward ops by autograd's number.
    """

    builder: Builder = field(default_factory=Builder)
    given: list[tuple[Value, Kind]] = field(default_factory=list[tuple[Value, Kind]])
    outputs: dict[str, Value] = field(default_factory=dict[str, Value])
    gradients: dict[str, Value] = field(default_factory=dict[str, Value])
    updates: dict[str, Value] = field(default_factory=dict[str, Value])
    held: set[str] = field(default_factory=set[str])
    by_seq: dict[Any, list[DraftOp]] = field(default_factory=dict[Any, list[DraftOp]])

    def roots(self) -> list[Value]:
        """Every value that the graph must compute."""
        return [*self.outputs.values(), *self.gradients.values(), *self.updates.values()]


def _template(arg: Any, inputs: list[Value]) -> Any:
    if isinstance(arg, Value):
        inputs.append(arg)
        return f"${len(inputs) - 1}"
    if isinstance(arg, list | tuple):
        return [_template(item, inputs) for item in arg]
    if isinstance(arg, dict):
        return {name: _template(item, inputs) for name, item in arg.items()}
    if isinstance(arg, torch.dtype):
        return dtype_name(arg)
    if arg is None or isinstance(arg, bool | int | float | str):
        return arg
    raise TraceError(
        f"an op has an argument of type {type(arg).__name__}, which a graph cannot hold: {arg!r}",
        hint="numbers, text and tensors",
    )
