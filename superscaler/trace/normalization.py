"""Batch norm over parts of the batch: what plain data parallelism and gradient accumulation compute.

By default its statistics are those of the whole batch (Ioffe and Szegedy 2015). Over ``parts`` equal parts of it, each
sample is normalised with its own part's (the "ghost batches" of Hoffer et al. 2017, §4); the running statistics follow
the mean over the parts. Parts are in the order in which a plan splits the batch, so they are a worker's own.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from superscaler.errors import TraceError
from superscaler.trace.source import current_line, shown

_parts: ContextVar[int] = ContextVar("parts", default=1)


@contextmanager
def batch_norm_parts(parts: int) -> Generator[None]:
    """While models are traced in this context, batch norm takes its statistics over each of ``parts`` equal parts."""
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.batch_norm``: [batch, channels, …] -> the same."""
    parts, batch = _parts.get(), input.shape[0]
    if not training or parts == 1:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if batch % parts:
        raise TraceError(
            f"a batch of {batch} has no {parts} equal parts for the statistics of batch norm",
            f"at {shown(current_line())}",
            hint='a batch that data parallelism × micro-batches divide, or batch_norm="global"',
        )
    x = input.reshape(parts, batch // parts, *input.shape[1:])
    over = [1, *range(3, x.ndim)]
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    _follow(running_mean, running_var, mean, variance, x[0, :, 0].numel(), momentum)
    shape = [1, 1, -1, *(1 for _ in input.shape[2:])]
    out = (x - mean) * torch.rsqrt(variance + eps)
    out = out if weight is None else out * weight.reshape(shape)
    return (out if bias is None else out + bias.reshape(shape)).reshape(input.shape)


def _follow(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """The running statistics move to the mean over the parts, the variance unbiased."""
    with torch.no_grad():
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean.mean(0).flatten() * momentum)
        if running_var is not None:
            running_var.mul_(1 - momentum).add_(var.mean(0).flatten() * (momentum * count / max(count - 1, 1)))
