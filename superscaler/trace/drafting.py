"""FX nodes -> draft: what each placeholder, node and output means, in one walk over the traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd import descriptors as desc
from torch._ops import OpOverload

from superscaler.ir.graph import Kind
from superscaler.trace.constants import as_op, known, name_of
from superscaler.trace.draft import Draft, DraftOp, Like, Origin, Value, dtype_name
from superscaler.trace.effects import Irregular
from superscaler.trace.inlining import ANCHOR, Region
from superscaler.trace.lowering import Call, Result, lower
from superscaler.trace.nodes import forward_only, like_of, refused, results_of, schema_of, strides_of
from superscaler.trace.provenance import Provenance, strip_root
from superscaler.trace.repeats import Call as RegionCall
from superscaler.trace.templates import Templates


@dataclass(frozen=True)
class Names:
    """Names of what the traced graph numbers; ``state``: each name of a parameter or buffer -> its first one.

    ``tensors``: parameters and buffers by first name. ``held``: tensors that modules hold beside these.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    state: Mapping[str, str]
    parameters: frozenset[str]
    tensors: Mapping[str, torch.Tensor]
    held: Mapping[str, torch.Tensor]


@dataclass
class _Scope:
    """One graph being walked: values of its nodes, and what its placeholders stand for."""

    provenance: Provenance
    placeholder: Callable[[fx.Node], Any]
    values: dict[fx.Node, Any]
    number: int | None = None


class Drafter:
    """Walks one FX graph; its regions are replaced by the graphs of their templates."""

    def __init__(self, names: Names, calls: Mapping[int, RegionCall], templates: Templates) -> None:
        self.names = names
        self.draft = Draft()
        self._calls = calls
        self._templates = templates
        self._given: dict[str, Value] = {}
        self._regions: dict[int, Region] = {}
        self._region_nodes: dict[fx.Node, Callable[[fx.Node], Any]] = {}
        self._scopes: dict[int, _Scope] = {}
        self._scope = _Scope(Provenance(), self._placeholder, {})

    def walk(self, graph: fx.Graph) -> Draft:
        """The draft of ``graph``; the placeholders and the output of it carry descriptors.

        Raises :class:`Irregular` where a repeated module is used in a way that its template cannot follow.
        """
        self._find_regions(graph)
        for node in graph.nodes:
            if node.op == "output":
                self._output(node)
            else:
                self._node(node)
        for name, tensor in self.names.tensors.items():  # those of repeated modules that are never called, too
            self._known_state(name, (tuple(tensor.shape), dtype_name(tensor.dtype)))
        self._order()
        return self.draft

    def _order(self) -> None:
        """State as the module names it, then inputs; whichever was met first."""
        order = {name: i for i, name in enumerate((*self.names.state.values(), *self.names.inputs))}
        self.draft.given.sort(key=lambda given: order.get(given[0].name, len(order)))
        self.draft.gradients = {n: self.draft.gradients[n] for n in order if n in self.draft.gradients}

    def _node(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._scope.values[node] = self._scope.placeholder(node)
        elif node.op == "call_function":
            self._scope.values[node] = self._call(node)
        else:
            self._scope.values[node] = self._constant(node)

    def _placeholder(self, node: fx.Node) -> Any:
        place = node.meta["desc"]
        if isinstance(place, desc.TangentAOTInput):
            shape, dtype = like_of(node, node.meta["val"])
            self.draft.builder.origin = self._scope.provenance.origin(node)
            return self.draft.builder.full(shape, 1.0, dtype)
        if isinstance(place, desc.PlainAOTInput):
            return self._new(self.names.inputs[place.idx], like_of(node, node.meta["val"]), "input")
        if isinstance(place, desc.ParamAOTInput | desc.BufferAOTInput):
            return self._state(node, strip_root(place.target))
        raise refused(node, f"it has an input that is neither tensor nor state: {place}")

    def _state(self, node: fx.Node, place: str) -> Value:
        if place == ANCHOR:
            return Value((), "", absent=True)
        return self._known_state(self.names.state[place], like_of(node, node.meta["val"]))

    def _known_state(self, name: str, like: Like) -> Value:
        return self._new(name, like, "parameter" if name in self.names.parameters else "buffer")

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
            raise refused(node, "it calls a function that torch traces as a graph of its own")
        if known(holder) is None and self._calls:
            raise Irregular("a tensor is read that is neither state of the module that runs nor an input of it")
        self.draft.builder.origin = Origin()
        return as_op(self.draft.builder, holder) or self._held(node, holder)

    def _held(self, node: fx.Node, tensor: torch.Tensor) -> Value:
        name = name_of(tensor, self.names.held)
        if name is None:
            raise refused(
                node, f"its code holds a tensor of {tensor.numel()} different values", hint="register it as a buffer"
            )
        self.draft.held.add(name)
        return self._new(name, (tuple(tensor.shape), dtype_name(tensor.dtype)), "buffer")

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            return self._scope.values[source][index]  # type: ignore[index]
        if not isinstance(node.target, OpOverload):
            raise refused(node, f"{node.target} is not an operator of tensors")
        if _complex(node):
            raise refused(
                node, "it computes with complex numbers",
                hint="real and imaginary parts as real tensors (rotary embeddings: cos and sin), or @superscaler.op",
            )  # fmt: skip
        if node in self._region_nodes:
            return self._region_nodes[node](node)
        builder, emitted = self.draft.builder, len(self.draft.builder.ops)
        builder.origin = self._scope.provenance.origin(node)
        call = self._operands(node, node.target)
        if builder.origin.accumulates and call.target == "aten.add.Tensor":
            return self._sum([call["self"], call["other"]])
        if any(isinstance(arg, Value) and arg.absent for arg in call.args):
            raise Irregular("a gradient that does not exist is computed with")
        try:
            result = lower(builder, call)
        except NotImplementedError as error:
            raise refused(node, str(error)) from None
        if builder.origin.phase == "forward" and builder.origin.seq is not None:
            self._remember(builder.origin.seq, builder.ops[emitted:], result)
        return result

    def _sum(self, terms: list[Value]) -> Value:
        terms = [term for term in terms if not term.absent] or terms[:1]
        if len(terms) == 1:
            return terms[0]
        # Torch gives an accumulation the number of the last forward op; the term that comes last tells its place.
        producers = [t.op for t in terms if t.op is not None]
        if producers:
            self.draft.builder.origin = max(producers, key=lambda op: op.index).origin
        return self.draft.builder.op("superscaler.add_n", terms, (terms[0].shape, terms[0].dtype))

    def _remember(self, seq: Any, emitted: list[DraftOp], result: Result) -> None:
        first = result[0] if isinstance(result, tuple) else result
        shared = [first.op] if first is not None and first.op is not None else []
        self.draft.by_seq.setdefault(seq, []).extend(emitted or shared)

    def _operands(self, node: fx.Node, target: OpOverload) -> Call:
        values = self._scope.values
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        named: dict[str, Any] = {}
        for position, argument in enumerate(schema_of(target)):
            if position < len(args):
                named[argument.name] = args[position]
            else:
                named[argument.name] = kwargs.get(argument.name, argument.default_value)
        told = node.meta.get("val")
        found = tuple(told) if isinstance(told, list | tuple) else (told,)
        outs = tuple(None if value is None else like_of(node, value) for value in found)
        return Call(str(target), tuple(args), dict(kwargs), named, outs, strides_of(node))

    def _output(self, node: fx.Node) -> None:
        for place, result in results_of(node):
            value = self._scope.values[result]
            if isinstance(place, desc.PlainAOTOutput):
                self.draft.outputs[self.names.outputs[place.idx]] = value
            elif isinstance(place, desc.GradAOTOutput) and isinstance(place.grad_of, desc.ParamAOTInput):
                if not value.absent:
                    self._gradient(self.names.state[strip_root(place.grad_of.target)], value)
            elif isinstance(place, desc.InputMutationAOTOutput):
                self._mutated(result, place.mutated_input, value)

    def _gradient(self, name: str, value: Value) -> None:
        """A parameter with several names has a gradient for each: their sum is the parameter's."""
        terms = [t for t in (self.draft.gradients.get(name), value) if t is not None]
        terms.sort(key=lambda t: t.op.index if t.op is not None else -1)
        self.draft.gradients[name] = self._sum(terms)

    def _mutated(self, node: fx.Node, place: Any, value: Value) -> None:
        if isinstance(place, desc.BufferAOTInput):
            self.draft.updates[self.names.state[strip_root(place.target)]] = value
        elif isinstance(place, desc.ParamAOTInput):
            raise refused(node, f"its forward writes into the parameter {strip_root(place.target)}")

    def _find_regions(self, graph: fx.Graph) -> None:
        """Note which calls have a backward, and for which of their outputs."""
        forward, backward = torch.ops.superscaler_trace.region, torch.ops.superscaler_trace.region_backward
        for node in graph.nodes:
            if node.target == forward.default:
                number: Any = node.args[2]
                self._regions[number] = Region(self._calls[number], number)
                self._region_nodes[node] = self._inlined
            elif node.target == backward.default:
                region = self._regions[node.args[4]]  # type: ignore[index]
                if region.present:
                    raise Irregular("a repeated module has two backwards")
                region.present = tuple(node.args[2])  # type: ignore[arg-type]
                self._region_nodes[node] = self._inlined_backward

    def _inlined(self, node: fx.Node) -> Any:
        """The outputs of a call: the forward of its template, on this call's inputs and state."""
        region = self._regions[node.args[2]]  # type: ignore[index]
        region.graph = self._templates.graph(region.call.template, region.present)
        region.inputs = [self._scope.values[n] for n in node.args[0][1:]]  # type: ignore[index,union-attr]
        self._walk_region(region, backward=False)
        return region.outputs()

    def _inlined_backward(self, node: fx.Node) -> Any:
        """The gradients of a call's inputs (first of all the anchor's, which is none): the backward of its template."""
        grads, _, _, wanted, number = node.args
        region = self._regions[number]  # type: ignore[index]
        region.tangents = [self._scope.values[n] for n in grads]  # type: ignore[union-attr]
        if any(x.absent for x in region.tangents):
            raise Irregular("a repeated module gets a gradient that does not exist")
        self._walk_region(region, backward=True)
        for target, value in region.state_gradients():
            self._gradient(self.names.state[f"{region.call.path}.{target}"], value)
        found = region.input_gradients()
        return [found.get(i - 1) or Value((), "", absent=True) for i in wanted]  # type: ignore[operator,union-attr]

    def _walk_region(self, region: Region, *, backward: bool) -> None:
        outer, before = self._scope, self.draft.builder.scope
        if region.number not in self._scopes:
            provenance = Provenance(region.call.path, region.number)
            self._scopes[region.number] = _Scope(
                provenance, lambda n: self._region_placeholder(region, n), region.values, region.number
            )
        self._scope, self.draft.builder.scope = self._scopes[region.number], region.number
        for node in region.graph.nodes:
            if node.op != "output" and forward_only(node) is not backward:
                self._node(node)
        self._scope, self.draft.builder.scope = outer, before

    def _region_placeholder(self, region: Region, node: fx.Node) -> Value:
        place = node.meta["desc"]
        if isinstance(place, desc.ParamAOTInput | desc.BufferAOTInput):
            return self._state(node, f"{region.call.path}.{strip_root(place.target)}")
        return region.placeholder(place)


def _complex(node: fx.Node) -> bool:
    """Whether a result of a node is complex."""
    found = node.meta.get("val")
    listed = found if isinstance(found, list | tuple) else [found]
    return any(isinstance(each, torch.Tensor) and each.is_complex() for each in listed)
