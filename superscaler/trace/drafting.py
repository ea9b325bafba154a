"""FX nodes -> draft: what each placeholder, node and output means, in one walk over the traced graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd import descriptors as desc
from torch._ops import OpOverload

from superscaler.errors import TraceError
from superscaler.ir.graph import Kind
from superscaler.trace.constants import as_op
from superscaler.trace.draft import Builder, DraftOp, Like, Origin, Value, dtype_name
from superscaler.trace.lowering import Call, Result, lower
from superscaler.trace.provenance import Provenance, line_of, strip_root
from superscaler.trace.source import shown


@dataclass
class Draft:
    """What the walk found. ``given``: inputs and state in order, with their kinds; results by name."""

    builder: Builder = field(default_factory=Builder)
    given: list[tuple[Value, Kind]] = field(default_factory=list[tuple[Value, Kind]])
    outputs: dict[str, Value] = field(default_factory=dict[str, Value])
    gradients: dict[str, Value] = field(default_factory=dict[str, Value])
    updates: dict[str, Value] = field(default_factory=dict[str, Value])
    constants: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    by_seq: dict[int, list[DraftOp]] = field(default_factory=dict[int, list[DraftOp]])

    def roots(self) -> list[Value]:
        """Every value that the graph must compute."""
        return [*self.outputs.values(), *self.gradients.values(), *self.updates.values()]


@dataclass(frozen=True)
class Names:
    """Names of what the traced graph numbers; ``state`` maps each name of a parameter or buffer to its first one."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    state: Mapping[str, str]
    parameters: frozenset[str]


class Drafter:
    """Walks one FX graph."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.draft = Draft()
        self._provenance = Provenance()
        self._values: dict[fx.Node, Any] = {}
        self._given: dict[str, Value] = {}

    def walk(self, graph: fx.Graph) -> Draft:
        """The draft of ``graph``; the placeholders and the output of it carry descriptors."""
        for node in graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                self._output(node)
            else:
                self._values[node] = self._constant(node)
        return self.draft

    def _placeholder(self, node: fx.Node) -> Any:
        place = node.meta["desc"]
        if isinstance(place, desc.TangentAOTInput):
            shape, dtype = _like(node, node.meta["val"])
            self.draft.builder.origin = self._provenance.origin(node)
            return self.draft.builder.full(shape, 1.0, dtype)
        if isinstance(place, desc.PlainAOTInput):
            return self._new(self.names.inputs[place.idx], _like(node, node.meta["val"]), "input")
        if isinstance(place, desc.ParamAOTInput | desc.BufferAOTInput):
            return self._state(node, strip_root(place.target))
        raise _refused(node, f"it has an input that is neither tensor nor state: {place}")

    def _state(self, node: fx.Node, place: str) -> Value:
        name = self.names.state[place]
        kind: Kind = "parameter" if name in self.names.parameters else "buffer"
        return self._new(name, _like(node, node.meta["val"]), kind)

    def _new(self, name: str, like: Like, kind: Kind) -> Value:
        if name not in self._given:
            value = Value(*like, name=name, state=kind in ("parameter", "buffer"))
            self._given[name] = value
            self.draft.given.append((value, kind))
        return self._given[name]

    def _constant(self, node: fx.Node) -> Value:
        """A tensor that the model's code holds (a ``get_attr`` node)."""
        holder: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            holder = getattr(holder, part)
        if not isinstance(holder, torch.Tensor):
            raise _refused(node, "it calls a function that torch traces as a graph of its own")
        self.draft.builder.origin = Origin()
        return as_op(self.draft.builder, holder) or self._held(node, holder, f"constants.{len(self.draft.constants)}")

    def _held(self, node: fx.Node, tensor: torch.Tensor, name: str) -> Value:
        self.draft.constants[name] = tensor.detach()
        return self._new(name, (tuple(tensor.shape), dtype_name(tensor.dtype)), "buffer")

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            return self._values[source][index]  # type: ignore[index]
        if not isinstance(node.target, OpOverload):
            raise _refused(node, f"{node.target} is not an operator of tensors")
        builder, emitted = self.draft.builder, len(self.draft.builder.ops)
        builder.origin = self._provenance.origin(node)
        call = self._operands(node, node.target)
        if builder.origin.accumulates and call.target == "aten.add.Tensor":
            return self._accumulated(call)
        try:
            result = lower(builder, call)
        except NotImplementedError as error:
            raise _refused(node, str(error)) from None
        if builder.origin.phase == "forward" and builder.origin.seq is not None:
            self._remember(builder.origin.seq, builder.ops[emitted:], result)
        return result

    def _accumulated(self, call: Call) -> Value:
        return self._sum([call["self"], call["other"]])

    def _sum(self, terms: list[Value]) -> Value:
        # Torch gives an accumulation the number of the last forward op; the term that comes last tells its place.
        producers = [t.op for t in terms if t.op is not None]
        if producers:
            self.draft.builder.origin = max(producers, key=lambda op: op.index).origin
        return self.draft.builder.op("superscaler.add_n", terms, (terms[0].shape, terms[0].dtype))

    def _remember(self, seq: int, emitted: list[DraftOp], result: Result) -> None:
        first = result[0] if isinstance(result, tuple) else result
        shared = [first.op] if first is not None and first.op is not None else []
        self.draft.by_seq.setdefault(seq, []).extend(emitted or shared)

    def _operands(self, node: fx.Node, target: OpOverload) -> Call:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: self._values[n])
        named: dict[str, Any] = {}
        for position, argument in enumerate(_schema(target).arguments):
            if position < len(args):
                named[argument.name] = args[position]
            else:
                named[argument.name] = kwargs.get(argument.name, argument.default_value)
        values = node.meta.get("val")
        found = tuple(values) if isinstance(values, list | tuple) else (values,)
        outs = tuple(None if value is None else _like(node, value) for value in found)
        return Call(str(target), tuple(args), dict(kwargs), named, outs, _strides(node))

    def _output(self, node: fx.Node) -> None:
        (results,) = node.args
        for place, result in zip(node.meta["desc"], results, strict=True):  # type: ignore[arg-type]
            if not isinstance(result, fx.Node):
                continue
            value = self._values[result]
            if isinstance(place, desc.PlainAOTOutput):
                self.draft.outputs[self.names.outputs[place.idx]] = value
            elif isinstance(place, desc.GradAOTOutput) and isinstance(place.grad_of, desc.ParamAOTInput):
                self._gradient(self.names.state[strip_root(place.grad_of.target)], value)
            elif isinstance(place, desc.InputMutationAOTOutput):
                self._mutated(result, place.mutated_input, value)

    def _gradient(self, name: str, value: Value) -> None:
        """A parameter with several names has a gradient for each: their sum is the parameter's."""
        terms = [t for t in (self.draft.gradients.get(name), value) if t is not None]
        terms.sort(key=lambda t: t.op.index if t.op is not None else -1)
        self.draft.gradients[name] = self._sum(terms) if len(terms) > 1 else value

    def _mutated(self, node: fx.Node, place: Any, value: Value) -> None:
        if isinstance(place, desc.BufferAOTInput):
            self.draft.updates[self.names.state[strip_root(place.target)]] = value
        elif isinstance(place, desc.ParamAOTInput):
            raise _refused(node, f"its forward writes into the parameter {strip_root(place.target)}")


def _schema(target: OpOverload) -> Any:
    return target._schema  # pyright: ignore[reportPrivateUsage]


def _strides(node: fx.Node) -> tuple[int, ...]:
    first = node.args[0] if node.args else None
    value = first.meta.get("val") if isinstance(first, fx.Node) else None
    return tuple(value.stride()) if isinstance(value, torch.Tensor) else ()


def _like(node: fx.Node, value: Any) -> Like:
    if not isinstance(value, torch.Tensor):
        raise _refused(node, f"{node.target} gives a {type(value).__name__}, whose value is known only when it runs")
    sizes: list[Any] = list(value.shape)
    if not all(isinstance(size, int) for size in sizes):
        raise _refused(node, f"{node.target} gives a tensor whose shape depends on data")
    return tuple(sizes), dtype_name(value.dtype)


def _refused(node: fx.Node, why: str) -> TraceError:
    line = line_of(node)
    where = (f"at {shown(line)}",) if line else ()
    return TraceError("the model cannot be traced", *where, why, hint="write this part with ops on whole tensors")
