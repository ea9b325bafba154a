"""Which function executes each target. A target runs only if a split rule names it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from superscaler.errors import SplitError
from superscaler.ir.rules import has_rule
from superscaler.runtime.ops import (
    attention,
    cache,
    convolution,
    creation,
    gather,
    grouped,
    loss,
    norm,
    optimizer,
    random,
    sleeping,
    views,
)

Function = Callable[..., Any]


def _cast(x: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    return x.to(dtype) if out is None else out.copy_(x)


def _add_n(*terms: torch.Tensor) -> torch.Tensor:
    """The sum of tensors of one shape, in order."""
    if len(terms) == 1:
        return terms[0].clone()
    total = terms[0] + terms[1]
    for term in terms[2:]:
        total += term
    return total


OURS: dict[str, Function] = {
    "reshape": views.reshape,
    "expand": views.expand,
    "block": views.block,
    "unblock": views.unblock,
    "slice_backward": views.slice_backward,
    "select_backward": views.select_backward,
    "cast": _cast,
    "add_n": _add_n,
    "full": creation.full,
    "arange": creation.arange,
    "embedding": gather.embedding,
    "embedding_backward": gather.embedding_backward,
    "gather_backward": gather.gather_backward,
    "index_backward": gather.index_backward,
    "layer_norm_backward_input": norm.layer_norm_backward_input,
    "layer_norm_backward_weight": norm.layer_norm_backward_weight,
    "rms_norm": norm.rms_norm,
    "rms_norm_backward_input": norm.rms_norm_backward_input,
    "rms_norm_backward_weight": norm.rms_norm_backward_weight,
    "attention": attention.attention,
    "attention_backward": attention.attention_backward,
    "attention_mask_backward": attention.attention_mask_backward,
    "cache_append": cache.cache_append,
    "cached_attention": cache.cached_attention,
    "logsumexp": loss.logsumexp,
    "pick": loss.pick,
    "nll": loss.nll,
    "count_valid": loss.count_valid,
    "cross_entropy_backward": loss.cross_entropy_backward,
    "grouped_mm": grouped.grouped_mm,
    "grouped_mm_backward_weight": grouped.grouped_mm_backward_weight,
    "convolution_backward_input": convolution.convolution_backward_input,
    "convolution_backward_weight": convolution.convolution_backward_weight,
    "dropout": random.dropout,
    "uniform": random.uniform,
    "normal": random.normal,
    "sgd": optimizer.sgd,
    "adamw": optimizer.adamw,
    "sumsq": optimizer.sumsq,
    "clip_coefficient": optimizer.clip_coefficient,
    "sleep": sleeping.slept,
    "sleep_backward": sleeping.slept,
    "sleep_each": sleeping.slept_each,
    "sleep_each_backward": sleeping.slept_each,
}

# The same computation as the overload of the same name, through a binding that costs less per call.
FAST: dict[str, Function] = {
    "aten.add.Tensor": torch.add,
    "aten.sub.Tensor": torch.sub,
    "aten.mul.Tensor": torch.mul,
    "aten.div.Tensor": torch.div,
    "aten.add.Scalar": torch.add,
    "aten.mul.Scalar": torch.mul,
    "aten.div.Scalar": torch.div,
    "aten.neg.default": torch.neg,
    "aten.exp.default": torch.exp,
    "aten.mm.default": torch.mm,
    "aten.bmm.default": torch.bmm,
    "aten.permute.default": torch.permute,
    "aten.cat.default": torch.cat,
    "aten.where.self": torch.where,
    "aten.pow.Tensor_Scalar": torch.pow,
    "aten.rsqrt.default": torch.rsqrt,
    "aten.sum.dim_IntList": torch.sum,
    "aten.amax.default": torch.amax,
    "aten.native_layer_norm.default": torch.native_layer_norm,
}

# Targets whose function can write into tensors it is given, as keyword ``out`` (a tuple, for several outputs).
OUT_FORMS: dict[str, Function] = {
    target: FAST[target]
    for target in (
        "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor", "aten.neg.default",
        "aten.exp.default", "aten.mm.default", "aten.bmm.default", "aten.cat.default", "aten.pow.Tensor_Scalar",
        "aten.rsqrt.default", "aten.sum.dim_IntList", "aten.amax.default",
    )
} | {f"superscaler.{name}": OURS[name] for name in OURS if name == "cast" or name.startswith("sleep")}  # fmt: skip

# Targets whose result is their first operand: their ``out`` may be that.
HANDING_ON = frozenset(target for target in OUT_FORMS if target.startswith("superscaler.sleep"))

# Targets that may overwrite state: the function, and per output the argument whose memory it takes.
INPLACE: dict[str, tuple[Function, tuple[int, ...]]] = {
    "superscaler.adamw": (optimizer.adamw_, (0, 2, 3)),
    "superscaler.sgd": (optimizer.sgd_, (0, 4)),
    "superscaler.cache_append": (cache.cache_append_, (0,)),
}


_provided: dict[str, Function] = {}


def provide(target: str, body: Function) -> None:
    """Execute ``target`` by this function, in this process."""
    _provided[target] = body
    function.cache_clear()


@functools.cache
def function(target: str) -> Function:
    """The plain function that executes ``target``. Raises :class:`SplitError` for a target that no rule names."""
    if not has_rule(target):
        raise SplitError(
            f"op {target} may not run: no split rule names it", hint="`superscaler ops` lists those that may"
        )
    if target in FAST:
        return FAST[target]
    if target in _provided:
        return _provided[target]
    room, _, name = target.partition(".")
    if room == "superscaler":
        return OURS[name]
    packet, _, overload = name.partition(".")
    try:
        found = getattr(getattr(getattr(torch.ops, room), packet), overload or "default")
    except AttributeError:
        raise SplitError(
            f"op {target} is not registered with torch", hint="import the module that registers it"
        ) from None
    masked = any(str(a.type) == "List[bool]" for a in found._schema.arguments)
    return _asked_for(found) if masked else found


def _asked_for(op: Any) -> Function:
    """An op whose results are those that a mask among its arguments asks for: the graph knows of no others."""

    def asked_for(*args: Any, **kwargs: Any) -> Any:
        found = tuple(x for x in op(*args, **kwargs) if x is not None)
        return found[0] if len(found) == 1 else found

    return asked_for
