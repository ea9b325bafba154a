"""Ops that exist only while a model is traced: opaque to autograd's decompositions, with their backward registered.

Attention, cross-entropy and dropout would otherwise be traced into a kernel of the tracing device, into a loss whose
backward waits for every forward, and into random bits that depend on how a tensor is split. ``lower`` turns these nodes
into ops of the Graph. They run on fake tensors only.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import custom_op

NAMESPACE = "superscaler_trace"


def _only_traced(*_: Any) -> NoReturn:
    raise NotImplementedError("superscaler_trace ops are traced, never run")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a log-sum-exp or a loss over values of ``dtype``: at least float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    """[b, h, s, d], [b, g, t, d], [b, g, t, e] -> output [b, h, s, e] and log-sum-exp [b, h, s].

    ``site`` numbers the calls of one trace, so that a backward op finds its forward op.
    """
    _only_traced()


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty(query.shape[:-1], dtype=statistics_dtype(query.dtype))


@custom_op(f"{NAMESPACE}::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    _only_traced()


@attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


@custom_op(f"{NAMESPACE}::attention_mask_backward", mutates_args=())
def attention_mask_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    site: int,
) -> Tensor:
    """The gradient of an additive mask."""
    _only_traced()


@attention_mask_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor, *_: Any) -> Tensor:
    return mask.new_empty(mask.shape)


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, mask, *ctx.static = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(query, key, value, out, lse, mask)


def _attention_gradient(ctx: Any, grad: Tensor, _lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse, mask = ctx.saved_tensors
    grads = attention_backward(grad, query, key, value, out, lse, mask, *ctx.static)
    learned = mask is not None and ctx.needs_input_grad[3]
    of_mask = attention_mask_backward(grad, query, key, value, out, lse, mask, *ctx.static) if learned else None
    return (*grads, of_mask, None, None, None, None)


attention.register_autograd(_attention_gradient, setup_context=_attention_context)


@custom_op(f"{NAMESPACE}::nll_sum", mutates_args=())
def nll_sum(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """[t, v], [t] -> the summed negative log-likelihood over labels that count (a scalar), and log-sum-exp [t]."""
    _only_traced()


@nll_sum.register_fake
def _(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(logits.dtype)
    return logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[:1], dtype=dtype)


@custom_op(f"{NAMESPACE}::nll_each", mutates_args=())
def nll_each(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """[t, v], [t] -> the negative log-likelihood of each label [t], 0 where ignored, and log-sum-exp [t]."""
    _only_traced()


@nll_each.register_fake
def _(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(logits.dtype)
    return logits.new_empty(logits.shape[:1], dtype=dtype), logits.new_empty(logits.shape[:1], dtype=dtype)


@custom_op(f"{NAMESPACE}::nll_backward", mutates_args=())
def nll_backward(grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    """The gradient of the logits, given that of the sum (a scalar) or of each term ([t])."""
    _only_traced()


@nll_backward.register_fake
def _(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _nll_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, labels, output[1])


def _nll_gradient(ctx: Any, grad: Tensor, _lse: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, labels, lse = ctx.saved_tensors
    return nll_backward(grad, logits, labels, lse, ctx.ignore_index), None, None


nll_sum.register_autograd(_nll_gradient, setup_context=_nll_context)
nll_each.register_autograd(_nll_gradient, setup_context=_nll_context)


@custom_op(f"{NAMESPACE}::count_valid", mutates_args=())
def count_valid(labels: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """[t] -> how many labels are not ignored, as a scalar of ``dtype``."""
    _only_traced()


@count_valid.register_fake
def _(labels: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    return labels.new_empty((), dtype=dtype)


@custom_op(f"{NAMESPACE}::dropout", mutates_args=())
def dropout(x: Tensor, p: float, site: int) -> Tensor:
    """``x`` with each element zeroed with probability ``p`` and the others divided by ``1 - p``."""
    _only_traced()


@dropout.register_fake
def _(x: Tensor, p: float, site: int) -> Tensor:
    return x.new_empty(x.shape)


@custom_op(f"{NAMESPACE}::dropout_backward", mutates_args=())
def dropout_backward(grad: Tensor, p: float, site: int) -> Tensor:
    """The same draw applied to the gradient."""
    _only_traced()


@dropout_backward.register_fake
def _(grad: Tensor, p: float, site: int) -> Tensor:
    return grad.new_empty(grad.shape)


def _dropout_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, ctx.site = inputs


def _dropout_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return dropout_backward(grad, ctx.p, ctx.site), None, None


dropout.register_autograd(_dropout_gradient, setup_context=_dropout_context)
