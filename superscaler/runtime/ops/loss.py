"""Cross-entropy in exact pieces: any part of the vocabulary, any part of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def logsumexp(logits: Tensor) -> Tensor:
    """log Σ exp over the last dim (−inf over an empty part), in float32 at least."""
    logits = wide(logits)
    if not logits.shape[-1]:
        return logits.new_full(logits.shape[:-1], float("-inf"))
    return torch.logsumexp(logits, -1)


def _inside(labels: Tensor, start: int | None, count: int) -> tuple[Tensor, Tensor]:
    """Labels as columns of the part from ``start`` on, clamped into it, and which of them truly lie in it."""
    columns = labels - start if start else labels
    inside = (columns >= 0) & (columns < count)
    return columns.clamp(0, max(count - 1, 0)), inside


def pick(logits: Tensor, labels: Tensor, start: int | None) -> Tensor:
    """The logit of each label; zero where the label lies outside the part of the vocabulary."""
    if not logits.shape[-1]:
        return logits.new_zeros(labels.shape)
    columns, inside = _inside(labels, start, logits.shape[-1])
    return logits.gather(-1, columns.unsqueeze(-1)).squeeze(-1).masked_fill_(~inside, 0)


def nll(lse: Tensor, picked: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Σ (lse − picked) over the tokens whose label is not ``ignore_index``."""
    return (lse - picked).masked_fill_(labels == ignore_index, 0).sum()


def count_valid(labels: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """How many labels are not ``ignore_index``."""
    return (labels != ignore_index).sum().to(dtype)


def cross_entropy_backward(
    g: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, start: int | None, ignore_index: int
) -> Tensor:
    """g · (softmax − one-hot) for the tokens that count, zero for the others; g is a scalar or one per token."""
    weight = torch.where(labels == ignore_index, 0, g).to(lse.dtype)
    out = torch.sub(logits, lse.unsqueeze(-1)).exp_().mul_(weight.unsqueeze(-1))
    if not logits.shape[-1]:
        return out.to(logits.dtype)
    columns, inside = _inside(labels, start, logits.shape[-1])
    hit = weight.neg().masked_fill_(~inside, 0)
    return out.scatter_add_(-1, columns.unsqueeze(-1), hit.unsqueeze(-1)).to(logits.dtype)
