"""Cross-entropy while tracing: a sum over a count that depends on the labels only, so that any split of it is exact."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from superscaler.errors import TraceError
from superscaler.trace import library
from superscaler.trace.source import current_line, shown


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy``, at least in float32. Targets that are probabilities are left to torch."""
    if target.is_floating_point():
        return F.cross_entropy(input, target, weight, reduction=reduction, label_smoothing=label_smoothing)
    _refuse_legacy(size_average, reduce)
    logits, labels = _rows(input), target.flatten()
    if weight is None and label_smoothing == 0.0 and reduction != "none":
        total, _ = library.nll_sum(logits, labels, ignore_index)
        return total if reduction == "sum" else total / library.count_valid(labels, ignore_index, total.dtype)
    each, _ = library.nll_each(logits, labels, ignore_index)
    weights = None if weight is None else _label_weights(weight.to(each.dtype), labels, ignore_index)
    each = each if weights is None else each * weights
    if label_smoothing:
        uniform = _smooth(logits.to(each.dtype), labels, weight, ignore_index) * (label_smoothing / logits.shape[1])
        each = each * (1.0 - label_smoothing) + uniform
    return _reduce(each, weights, labels, ignore_index, reduction).reshape(target.shape if reduction == "none" else ())


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``F.nll_loss`` of log-probabilities that no log_softmax of this trace gave."""
    _refuse_legacy(size_average, reduce)
    scores, labels = _rows(input), target.flatten()
    valid = labels != ignore_index
    safe = torch.where(valid, labels, 0)
    each = torch.where(valid, -torch.gather(scores, 1, safe[:, None])[:, 0], 0.0)
    weights = None if weight is None else _label_weights(weight, labels, ignore_index)
    each = each if weights is None else each * weights
    return _reduce(each, weights, labels, ignore_index, reduction).reshape(target.shape if reduction == "none" else ())


def _refuse_legacy(*flags: Any) -> None:
    if any(flag is not None for flag in flags):
        raise TraceError(
            "size_average and reduce are not supported", f"at {shown(current_line())}", hint="reduction='mean'"
        )


def _rows(scores: Tensor) -> Tensor:
    """[v] or [n, v, ...] -> [t, v]."""
    if scores.ndim == 1:
        return scores.unsqueeze(0)
    return scores.movedim(1, -1).flatten(0, -2) if scores.ndim > 2 else scores


def _label_weights(weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    valid = labels != ignore_index
    found = F.embedding(torch.where(valid, labels, 0), weight.unsqueeze(1)).squeeze(1)
    return torch.where(valid, found, 0.0)


def _smooth(logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    scores = -torch.log_softmax(logits, 1)
    total = (scores if weight is None else scores * weight).sum(1)
    return torch.where(labels != ignore_index, total, 0.0)


def _reduce(each: Tensor, weights: Tensor | None, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return each
    if reduction == "sum":
        return each.sum()
    count = library.count_valid(labels, ignore_index, each.dtype) if weights is None else weights.sum()
    return each.sum() / count
