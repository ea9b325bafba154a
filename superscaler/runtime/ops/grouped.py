"""Grouped matrix products: consecutive stretches of rows, each times its own matrix (experts)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _stretches(ends: Tensor, start: int | None, count: int) -> Iterator[tuple[int, int, int]]:
    """(matrix in the part, first row, row after the last) of those that have rows."""
    bounds = [0, *ends.tolist()]
    first = start or 0
    for i in range(count):
        low, high = bounds[first + i], bounds[first + i + 1]
        if high > low:
            yield i, low, high


def grouped_mm(rows: Tensor, matrices: Tensor, ends: Tensor, start: int | None) -> Tensor:
    """[b, h] × [e, h, o] -> [b, o]; ``matrices`` are those from ``start`` on, the rows of others give zeros."""
    out = rows.new_zeros((rows.shape[0], matrices.shape[2]))
    for i, low, high in _stretches(ends, start, matrices.shape[0]):
        torch.mm(rows[low:high], matrices[i], out=out[low:high])
    return out


def grouped_mm_backward_weight(rows: Tensor, grad: Tensor, ends: Tensor, start: int | None, count: int) -> Tensor:
    """[b, h], [b, o] -> [e, h, o]: the gradient of ``count`` matrices from ``start`` on."""
    out = rows.new_zeros((count, rows.shape[1], grad.shape[1]))
    for i, low, high in _stretches(ends, start, count):
        torch.mm(rows[low:high].t(), grad[low:high], out=out[i])
    return out
