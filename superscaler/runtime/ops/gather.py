"""Embeddings over a part of the vocabulary, and the adjoints of lookups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_NARROW = 8  # columns: wider rows are as fast in ATen's kernel


def _local(ids: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Ids as rows of the part ``start:start+count``, and which of them lie outside it."""
    rows = ids - start
    return rows, (rows < 0) | (rows >= count)


def embedding(weight: Tensor, ids: Tensor, start: int | None, padding_idx: int | None) -> Tensor:
    """Rows of ``weight``, which holds the vocabulary from ``start`` on (None: all of it); zeros for other ids."""
    if start is None:
        return torch.embedding(weight, ids)
    if not weight.shape[0]:
        return weight.new_zeros((*ids.shape, weight.shape[1]))
    rows, outside = _local(ids, start, weight.shape[0])
    return torch.embedding(weight, rows.masked_fill_(outside, 0)).masked_fill_(outside.unsqueeze(-1), 0)


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32: the kernels add row by row in the dtype that they are given."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def embedding_backward(grad: Tensor, ids: Tensor, count: int, start: int | None, padding_idx: int | None) -> Tensor:
    """The gradient of ``count`` rows from ``start`` on: each the sum of ``grad`` where its id occurs."""
    if start is None:
        padding = -1 if padding_idx is None else padding_idx
        return _row_sums(_wide(grad), ids, count, padding).to(grad.dtype)
    rows, outside = _local(ids, start, count)
    if padding_idx is not None:
        outside |= ids == padding_idx
    rows.masked_fill_(outside, count)  # padding is skipped, so row `count` need not exist
    return _row_sums(_wide(grad), rows, count, count).to(grad.dtype)


def _row_sums(grad: Tensor, rows: Tensor, count: int, padding: int) -> Tensor:
    """``count`` rows: each the sum of the gradients whose row it is, but for those of ``padding``.

    ATen's kernel costs the same for a row of one element as for one of eight on a CPU. Narrow tables are those of
    position biases, one column per head, read millions of times: they are summed column by column, in the same order.
    """
    width = grad.shape[-1]
    if grad.device.type != "cpu" or width > _NARROW:
        return torch.ops.aten.embedding_dense_backward.default(grad, rows, count, padding, False)
    index = rows.flatten()
    if padding >= 0:
        index = index.masked_fill(index == padding, count)
    columns = grad.reshape(-1, width).t()
    sums = grad.new_zeros(width, count + 1).scatter_add_(1, index.expand(width, -1), columns)
    return sums[:, :count].t().contiguous()


def gather_backward(grad: Tensor, index: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """The adjoint of ``gather``: zeros of ``shape`` plus each element where it was taken from."""
    wide = _wide(grad)
    return wide.new_zeros(shape).scatter_add_(dim, index, wide).to(grad.dtype)


def index_backward(grad: Tensor, indices: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor:
    """The adjoint of ``x[indices]``: zeros of ``shape`` plus each element where it was taken from."""
    wide = _wide(grad)
    return torch.ops.aten.index_put_.default(wide.new_zeros(shape), indices, wide, True).to(grad.dtype)
