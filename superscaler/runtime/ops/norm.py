"""Gradients of layer and RMS normalisation, input and weight apart (they are scheduled apart)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _normalised(x: Tensor, mean: Tensor) -> list[int]:
    """The trailing dims that were normalised over: those that the statistics have reduced."""
    rank = 0
    while rank < x.ndim and mean.shape[x.ndim - 1 - rank] == 1:
        rank += 1
    return list(x.shape[x.ndim - rank :])


def layer_norm_backward_input(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None = None) -> Tensor:
    """The gradient of the input."""
    shape = list(weight.shape) if weight is not None else _normalised(x, mean)
    return layer_norm_backward(g, x, shape, mean, rstd, weight, None, [True, False, False])[0]


def layer_norm_backward_weight(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, shape: Sequence[int] | None = None
) -> Tensor:
    """The gradient of the weight, of ``shape`` (None: the last dim): the sum of g · (x − mean) / σ over all others."""
    shape = list(x.shape[-1:] if shape is None else shape)
    weight = g.new_empty(shape)  # the kernel reads its shape only
    return layer_norm_backward(g, x, shape, mean, rstd, weight, None, [False, True, False])[1]


def layer_norm_backward(
    g: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Torch's kernel, whose ``mask`` says which gradients it gives; it walks through the statistics by address."""
    mean, rstd = mean.contiguous(), rstd.contiguous()
    weight = weight.contiguous() if weight is not None else None
    return torch.ops.aten.native_layer_norm_backward.default(g, x, shape, mean, rstd, weight, bias, mask)


def rms_norm(x: Tensor, *rest: Tensor | float) -> tuple[Tensor, Tensor]:
    """``(x, [weight], eps)`` -> x / rms(x) · weight and 1 / rms(x), over the last dim (Zhang and Sennrich 2019)."""
    *weight, eps = rest
    wide = _wide(x)
    rstd = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    out = (wide * rstd).to(x.dtype)
    return (out * weight[0] if weight else out), rstd


def rms_norm_backward_input(g: Tensor, x: Tensor, rstd: Tensor, weight: Tensor | None = None) -> Tensor:
    """The gradient of the input: r · (gw − x · r² · mean(gw · x)), with gw = g · weight and r = 1 / rms."""
    gw = _wide(g if weight is None else g * weight)
    wide = _wide(x)
    along = (gw * wide).mean(-1, keepdim=True) * rstd.square()
    return ((gw - wide * along) * rstd).to(x.dtype)


def rms_norm_backward_weight(g: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of the weight: the sum of g · x / rms over all but the last dim."""
    return (_wide(g) * _wide(x) * rstd).flatten(0, -2).sum(0).to(g.dtype)


def _wide(x: Tensor) -> Tensor:
    """Half precision is normalised in float32, as torch does."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
