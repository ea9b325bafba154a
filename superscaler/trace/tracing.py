"""``trace``: an nn.Module and a batch -> a Graph."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from superscaler.errors import SuperscalerError, TraceError, UsageError, did_you_mean
from superscaler.ir.graph import GIVEN, OF_STEP, Graph
from superscaler.trace import transformers_masks
from superscaler.trace.caches import caches_watched
from superscaler.trace.capture import Tracing
from superscaler.trace.constants import held
from superscaler.trace.copies import fake_copy, fake_like, fake_mode_of
from superscaler.trace.draft import Draft
from superscaler.trace.drafting import Drafter, Names
from superscaler.trace.effects import Irregular
from superscaler.trace.entry import Entry, Loss, Mode
from superscaler.trace.finish import finish
from superscaler.trace.inputs import Inputs, bind
from superscaler.trace.repeats import Repeats
from superscaler.trace.templates import Templates

Precision = Literal["f32", "f64", "bf16"]
_DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Traced:
    """A Graph and where its state comes from.

    ``state``: name of a state tensor in the graph -> its names in the module (several where it is shared). A tensor
    held beside parameters and buffers (``self.table = ...``) is state as well, unless it is small or regular.
    ``call``: the arguments by name, in order -> a setting as Python writes it; "" for a tensor.
    """

    graph: Graph
    state: Mapping[str, tuple[str, ...]]
    call: Mapping[str, str] = field(default_factory=dict[str, str])

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state by graph name, in the graph's dtypes; shared tensors once. Copies."""
        found = {
            **held(model),
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        return {
            tensor.name: found[self.state[tensor.name][0]].detach().to(getattr(torch, tensor.dtype), copy=True)
            for tensor in self.graph.state()
        }


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Loss | None = None,
    mode: Mode = "train",
    dtype: Precision = "f32",
) -> Traced:
    """The Graph of ``model`` on a batch of the shapes of ``args`` and ``kwargs``; the model is left as it is.

    ``mode="train"``: loss and the gradient of every parameter, in training mode; ``"eval"``: every tensor that the
    model returns, in evaluation mode. ``loss``: from the model's output to a scalar; by default the output, its
    ``loss`` attribute, or its ``"loss"`` item. ``dtype``: of parameters and floating-point inputs; with ``"f64"`` casts
    inside the model become float64 too. Works on real models and on models of fake tensors of any size.

    Raises :class:`TraceError` naming the model's source line for what cannot be traced; :class:`UsageError` for an
    unknown mode or dtype.
    """
    _known("mode", mode, ("train", "eval"))
    _known("dtype", dtype, _DTYPES)
    inputs = bind(model, args, kwargs or {})
    fake = _mode(model, inputs)
    kind = _DTYPES[dtype]
    copied = fake_copy(
        model, fake, parameters=kind, buffers=None if dtype == "bf16" else kind, gradients=mode == "train"
    )
    if copied.training != (mode == "train"):  # parts that the user froze with eval() stay so in training
        copied.train(mode == "train")
    if mode == "eval":
        copied.eval()
    transformers_masks.prepare(copied)
    state = _shared_names(copied)
    tracing = Tracing(fake, dtype == "f64", "position_ids" in inputs.tensors)
    tensors = [fake_like(tensor, fake, kind) for tensor in inputs.tensors.values()]
    entry = Entry(copied, inputs, loss, mode)
    with caches_watched():
        draft = _drafted(entry, tensors, inputs, state, tracing)
        tracing.refuse_memory(entry, tensors)
    traced = Traced(finish(draft), {**state, **{name: (name,) for name in draft.held}}, inputs.stated)
    if mode == "train" and not traced.graph.gradients:
        raise TraceError(
            "the loss depends on no parameter that requires a gradient",
            hint="parameter.requires_grad_(True); look for .detach() and torch.no_grad()",
        )
    return traced


def _drafted(
    entry: Entry, tensors: list[Tensor], inputs: Inputs, state: Mapping[str, tuple[str, ...]], tracing: Tracing
) -> Draft:
    """The draft, with repeated modules traced once; or, if that does not work out, traced whole."""
    repeats = Repeats(entry)
    templates = Templates(tracing.capture, tracing.mode)
    first_names = {name: first for first, names in state.items() for name in names}
    parameters = dict(entry.model.named_parameters())
    known = {**parameters, **dict(entry.model.named_buffers())}

    def draft(repeats: Repeats | None) -> Draft:
        graph = tracing.capture(entry, tensors, repeats)
        taken = (
            _distinct(inputs.tensors, {*first_names, *held(entry.model), *OF_STEP}),
            entry.names,
            first_names,
            frozenset(parameters),
            known,
            held(entry.model),
        )
        return Drafter(Names(*taken), repeats.calls if repeats else {}, templates).walk(graph)

    if repeats:
        with tracing.mode:
            entry.anchor = nn.Parameter(torch.zeros(()))
        try:
            tracing.rehearse(entry, tensors, repeats)
            if repeats:
                return draft(repeats)
        except (Irregular, SuperscalerError):
            pass  # a true error shows again
        entry.anchor = None
    return draft(None)


def _distinct(inputs: Iterable[str], others: Container[str]) -> list[str]:
    """Names of the inputs that no parameter or buffer has, nor what the job gives."""
    return [name if name not in others else GIVEN + name for name in inputs]


def _known(what: str, given: object, choices: Any) -> None:
    if not isinstance(given, str) or given not in choices:
        raise UsageError(f"trace: no {what} {given!r}", hint=did_you_mean(str(given), choices))


def _mode(model: nn.Module, inputs: Inputs) -> FakeTensorMode:
    found = fake_mode_of(*model.parameters(), *model.buffers(), *inputs.tensors.values())
    return found or FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def _shared_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The first name of each parameter and buffer -> all its names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in named:
        by_tensor.setdefault(id(tensor), []).append(name)
    return {names[0]: tuple(names) for names in by_tensor.values()}
