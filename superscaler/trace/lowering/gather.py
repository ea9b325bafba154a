"""Lookups by index, and their adjoints: a gradient is added up where its elements were taken from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from superscaler.trace.draft import Builder, Shape, Value
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.pointwise import binary, cast, scale
from superscaler.trace.views import block, expand, permute, reshape, unblock


def _padding(index: int) -> int | None:
    return index if index >= 0 else None


def _embedding(b: Builder, c: Call) -> Result:
    args = [c["weight"], c["indices"], "#start:v", _padding(c["padding_idx"])]
    return b.op("superscaler.embedding", args, c.out)


def _embedding_backward(b: Builder, c: Call) -> Result:
    if c["scale_grad_by_freq"]:
        raise NotImplementedError("an embedding whose gradient is scaled by frequency depends on the whole batch")
    args = [c["grad_output"], c["indices"], "#local:v", "#start:v", _padding(c["padding_idx"])]
    return b.op("superscaler.embedding_backward", args, c.out)


def _gather(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return b.op(c.target, [x, c["dim"] % x.rank if x.rank else 0, c["index"]], c.out)


def _row_wise(b: Builder, shape: Shape, indices: Sequence[Value | None]) -> Value | None:
    """The index of a gather along dim 1 that takes what ``indices`` do, if they take from each row by itself.

    ``x[arange(n), index]`` picks a token of each sequence: rows of the batch that a general lookup would keep whole.
    None if ``indices`` are others.
    """
    if len(indices) < 2 or not _counts(indices[0], shape[0]) or any(i is not None for i in indices[2:]):
        return None
    rows, index = indices[:2]
    if rows is None or index is None or index.dtype == "bool" or rows.rank < index.rank:
        return None
    index = cast(b, index, "int64")
    below = b.op("aten.lt.Scalar", [index, 0], (index.shape, "bool"))
    from_end = binary(b, "add", index, shape[1], (index.shape, "int64"))
    index = b.op("aten.where.self", [below, from_end, index], (index.shape, "int64"))
    wide = expand(b, index, (shape[0], *(index.shape[d - rows.rank] if d >= rows.rank - index.rank else 1
                                         for d in range(1, rows.rank))))  # fmt: skip
    each = (shape[0], wide.numel // shape[0])
    column = reshape(b, wide, (*each, *[1] * (len(shape) - 2)))
    return expand(b, column, (*each, *shape[2:]))


def _counts(rows: Value | None, size: int) -> bool:
    """Whether ``rows`` is 0, 1, … ``size`` - 1 along its first dim, of which the others are to be broadcast."""
    if rows is None or rows.rank == 0 or rows.shape[0] != size or rows.numel != size:
        return False
    while rows.op is not None and rows.op.target == "superscaler.reshape":
        rows = rows.op.inputs[0]
    return rows.op is not None and rows.op.target == "superscaler.arange" and rows.op.args[:2] == (0, 1)


def _all_rows(shape: Shape, indices: Sequence[Value | None]) -> bool:
    """Whether ``indices`` take every row, in order."""
    return bool(indices) and _counts(indices[0], shape[0]) and all(i is None for i in indices[1:])


def _index(b: Builder, c: Call) -> Result:
    x, indices = c["self"], list(c["indices"])
    if _all_rows(x.shape, indices):
        return reshape(b, x, c.out[0])
    rows = _row_wise(b, x.shape, indices)
    if rows is None:
        return b.op("aten.index.Tensor", [x, indices], c.out)
    return reshape(b, b.op("aten.gather.default", [x, 1, rows], (rows.shape, x.dtype)), c.out[0])


def _index_select(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return b.op(c.target, [x, c["dim"] % x.rank, c["index"]], c.out)


def _zeros(x: Value) -> bool:
    return x.fill == 0


def _scatter(b: Builder, c: Call) -> Result:
    """Into zeros it is the adjoint of a gather: elements are added, or (from sort and topk) each place is hit once."""
    x, index, source = c["self"], c["index"], c["src"]
    dim = c["dim"] % x.rank if x.rank else 0
    adds = c.target == "aten.scatter_add.default" or b.origin.phase == "backward"
    if _zeros(x) and adds and x.rank and index.shape == source.shape:
        return b.op("superscaler.gather_backward", [source, index, "#shape", dim], c.out)
    return b.op(c.target, [x, dim, index, source], c.out)


def _index_add(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dim = c["dim"] % x.rank
    source = c["source"] if c["alpha"] == 1 else scale(b, c["source"], c["alpha"])
    if _zeros(x):
        return b.op("superscaler.index_backward", [source, [*([None] * dim), c["index"]], "#shape"], c.out)
    return b.op(c.target, [x, dim, c["index"], source], c.out)


def _index_put(b: Builder, c: Call) -> Result:
    x, values, indices = c["self"], c["values"], list(c["indices"])
    if _all_rows(x.shape, indices) and (_zeros(x) or not c["accumulate"]):
        return reshape(b, expand(b, values, (*indices[0].shape, *x.shape[1:])), x.shape)
    rows = _row_wise(b, x.shape, indices)
    if rows is not None:
        taken: Shape = (*torch.broadcast_shapes(*(i.shape for i in indices if i is not None)), *x.shape[2:])
        source = reshape(b, expand(b, values, taken), rows.shape)
        if _zeros(x) and c["accumulate"]:
            return b.op("superscaler.gather_backward", [source, rows, "#shape", 1], c.out)
        return b.op(f"aten.scatter{'_add.default' if c['accumulate'] else '.src'}", [x, 1, rows, source], c.out)
    if _zeros(x) and c["accumulate"]:
        return b.op("superscaler.index_backward", [values, list(c["indices"]), "#shape"], c.out)
    return b.op("aten.index_put.default", [x, list(c["indices"]), values, c["accumulate"]], c.out)


def _windows(b: Builder, count: int, size: int, step: int) -> Value:
    """The positions [count, size] of the elements of each window."""
    like = ((count,), "int64")
    starts = b.op("superscaler.arange", [0, step, "int64", "#start:n", "#local:n"], like)
    within = b.op("superscaler.arange", [0, 1, "int64", "#start:n", "#local:n"], ((size,), "int64"))
    columns = reshape(b, starts, (count, 1))
    return binary(b, "add", columns, reshape(b, within, (1, size)), ((count, size), "int64"))


def _moved(rank: int, source: int, target: int) -> list[int]:
    """The permutation that moves one dim to another place."""
    order = [d for d in range(rank) if d != source]
    order.insert(target, source)
    return order


def _unfold(b: Builder, c: Call) -> Result:
    x, size, step = c["self"], c["size"], c["step"]
    dim, shape = c["dimension"] % x.rank, c.out[0]
    count = shape[dim]
    apart: Shape = (*x.shape[:dim], count, size, *x.shape[dim + 1 :])
    if step == size:
        found = reshape(b, block(b, x, dim, 0, count * size), apart)
    else:
        index = [*([None] * dim), _windows(b, count, size, step)]
        found = b.op("aten.index.Tensor", [x, index], (apart, x.dtype))
    return permute(b, found, _moved(len(apart), dim + 1, len(apart) - 1))


def _unfold_backward(b: Builder, c: Call) -> Result:
    grad, size, step = c["grad_in"], c["size"], c["step"]
    sizes: list[int] = c["input_sizes"]
    dim = c["dim"] % len(sizes)
    rows = permute(b, grad, _moved(grad.rank, grad.rank - 1, dim + 1))
    count = rows.shape[dim]
    if step == size:
        merged = reshape(b, rows, (*rows.shape[:dim], count * size, *rows.shape[dim + 2 :]))
        return unblock(b, merged, dim, 0, sizes[dim])
    index = [*([None] * dim), _windows(b, count, size, step)]
    return b.op("superscaler.index_backward", [rows, index, "#shape"], c.out)


def _index_copy(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    index = [*([None] * (c["dim"] % x.rank)), c["index"]]
    if _zeros(x):  # each place is written at most once
        return b.op("superscaler.index_backward", [c["source"], index, "#shape"], c.out)
    return b.op("aten.index_put.default", [x, index, c["source"], False], c.out)


def _on_diagonal(b: Builder, shape: Shape, dims: tuple[int, int], offset: int, count: int) -> list[Value | None]:
    """Positions of a diagonal in a tensor whose dims ``dims`` are the last, merged into one."""
    start = offset if offset >= 0 else -offset * shape[dims[1]]
    args = [start, shape[dims[1]] + 1, "int64", "#start:n", "#local:n"]
    return [*([None] * (len(shape) - 2)), b.op("superscaler.arange", args, ((count,), "int64"))]


def _dims(c: Call, rank: int) -> tuple[int, int]:
    return c.named.get("dim1", 0) % rank, c.named.get("dim2", 1) % rank


def _diagonal(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dims = _dims(c, x.rank)
    last = permute(b, x, [*(d for d in range(x.rank) if d not in dims), *dims])
    flat = reshape(b, last, (*last.shape[:-2], last.shape[-2] * last.shape[-1]))
    index = _on_diagonal(b, x.shape, dims, c.named.get("offset", 0), c.out[0][-1])
    return b.op("aten.index.Tensor", [flat, index], c.out)


def _diagonal_backward(b: Builder, c: Call) -> Result:
    grad, shape = c["grad_output"], tuple(c["input_sizes"])
    dims = _dims(c, len(shape))
    index = _on_diagonal(b, shape, dims, c["offset"], grad.shape[-1])
    order = [*(d for d in range(len(shape)) if d not in dims), *dims]
    last = tuple(shape[d] for d in order)
    merged = (*last[:-2], last[-2] * last[-1])
    flat = b.op("superscaler.index_backward", [grad, index, "#shape"], (merged, grad.dtype))
    return permute(b, reshape(b, flat, last), [order.index(d) for d in range(len(shape))])


LOWERINGS: dict[str, Lowering] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_dense_backward.default": _embedding_backward,
    "aten.gather.default": _gather,
    "aten.index.Tensor": _index,
    "aten._unsafe_index.Tensor": _index,
    "aten.index_select.default": _index_select,
    "aten.scatter.src": _scatter,
    "aten.scatter_add.default": _scatter,
    "aten.index_add.default": _index_add,
    "aten.index_put.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
    "aten.index_copy.default": _index_copy,
    "aten.diagonal.default": _diagonal,
    "aten.diagonal_copy.default": _diagonal,
    "aten.diagonal_backward.default": _diagonal_backward,
    "aten.unfold.default": _unfold,
    "aten.unfold_backward.default": _unfold_backward,
}
