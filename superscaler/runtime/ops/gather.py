"""Embeddings over a part of the vocabulary, and the adjoints of lookups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
        return torch.ops.aten.embedding_dense_backward.default(_wide(grad), ids, count, padding, False).to(grad.dtype)
    rows, outside = _local(ids, start, count)
    if padding_idx is not None:
        outside |= ids == padding_idx
    rows.masked_fill_(outside, count)  # the kernel skips its padding index, so row `count` need not exist
    return torch.ops.aten.embedding_dense_backward.default(_wide(grad), rows, count, count, False).to(grad.dtype)


def gather_backward(grad: Tensor, index: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """The adjoint of ``gather``: zeros of ``shape`` plus each element where it was taken from."""
    wide = _wide(grad)
    return wide.new_zeros(shape).scatter_add_(dim, index, wide).to(grad.dtype)


def index_backward(grad: Tensor, indices: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor:
    """The adjoint of ``x[indices]``: zeros of ``shape`` plus each element where it was taken from."""
    wide = _wide(grad)
    return torch.ops.aten.index_put_.default(wide.new_zeros(shape), indices, wide, True).to(grad.dtype)
