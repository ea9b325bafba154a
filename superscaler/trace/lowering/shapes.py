"""Views of the traced graph as the few view ops of the Graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result, dims_of
from superscaler.trace.lowering.pointwise import cast
from superscaler.trace.views import block, expand, permute, reshape, transpose, unblock


def _reshape(b: Builder, c: Call) -> Result:
    return reshape(b, c.args[0], c.out[0])


def _permute(b: Builder, c: Call) -> Result:
    return permute(b, c["self"], c["dims"])


def _t(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return permute(b, x, [1, 0]) if x.rank == 2 else x


def _transpose(b: Builder, c: Call) -> Result:
    return transpose(b, c["self"], c["dim0"], c["dim1"])


def _expand(b: Builder, c: Call) -> Result:
    return expand(b, c["self"], c.out[0])


def _bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    first = 0 if start is None else max(0, start + size if start < 0 else start)
    last = size if end is None else min(size, end + size if end < 0 else end)
    return min(first, size), max(last, first)


def _slice(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dim = c["dim"] % x.rank
    start, end = _bounds(c["start"], c["end"], x.shape[dim])
    step: int = c["step"]
    if step == 1:
        return block(b, x, dim, start, end - start)
    if _comb(start, end, step, x.shape[dim]):
        split = reshape(b, x, (*x.shape[:dim], x.shape[dim] // step, step, *x.shape[dim + 1 :]))
        return b.op("aten.select.int", [split, dim + 1, start], c.out)
    return b.op("aten.slice.Tensor", [x, dim, start, end, step], c.out)


def _comb(start: int, end: int, step: int, size: int) -> bool:
    """Whether a slice takes the ``start``-th of every ``step`` elements, to the end."""
    return size % step == 0 and start < step and end > size - step + start


def _slice_backward(b: Builder, c: Call) -> Result:
    grad: Value = c["grad_output"]
    sizes: list[int] = c["input_sizes"]
    dim = c["dim"] % len(sizes)
    start, end = _bounds(c["start"], c["end"], sizes[dim])
    step: int = c["step"]
    if step == 1:
        return unblock(b, grad, dim, start, sizes[dim])
    if _comb(start, end, step, sizes[dim]):
        split = (*sizes[:dim], sizes[dim] // step, step, *sizes[dim + 1 :])
        wide = b.op("superscaler.select_backward", [grad, "#shape", dim + 1, start], (split, grad.dtype))
        return reshape(b, wide, sizes)
    return b.op("superscaler.slice_backward", [grad, "#shape", dim, start, end, step], c.out)


def _select(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dim = c["dim"] % x.rank
    if x.fill is not None or x.shape[dim] == 1:
        return reshape(b, x, c.out[0]) if x.fill is None else b.full(c.out[0], x.fill, x.dtype)
    return b.op("aten.select.int", [x, dim, c["index"] % x.shape[dim]], c.out)


def _select_backward(b: Builder, c: Call) -> Result:
    sizes: list[int] = c["input_sizes"]
    dim = c["dim"] % len(sizes)
    if sizes[dim] == 1:
        return reshape(b, c["grad_output"], sizes)
    return b.op("superscaler.select_backward", [c["grad_output"], "#shape", dim, c["index"] % sizes[dim]], c.out)


def _split(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dim = c["dim"] % x.rank
    parts: list[Value] = []
    start = 0
    for like in c.outs:
        assert like is not None
        parts.append(block(b, x, dim, start, like[0][dim]))
        start += like[0][dim]
    return tuple(parts)


def _unbind(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dim = c["dim"] % x.rank
    if x.shape[dim] == 1:
        return (reshape(b, x, (*x.shape[:dim], *x.shape[dim + 1 :])),)
    return tuple(b.op("aten.select.int", [x, dim, i], like) for i, like in enumerate(c.outs) if like is not None)


def _cat(b: Builder, c: Call) -> Result:
    shape, dtype = c.out
    # torch lets an empty one-dimensional tensor be concatenated with anything.
    parts = [cast(b, x, dtype) for x in c["tensors"] if x.numel or x.rank == len(shape)]
    return parts[0] if len(parts) == 1 else b.op("aten.cat.default", [parts, c["dim"] % len(shape)], c.out)


def _stack(b: Builder, c: Call) -> Result:
    shape, dtype = c.out
    parts = [cast(b, x, dtype) for x in c["tensors"]]
    return b.op("aten.stack.default", [parts, c["dim"] % len(shape)], c.out)


def _flip(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return b.op(c.target, [x, dims_of(c["dims"], x.rank)], c.out)


def _roll(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    dims = [d % x.rank for d in c["dims"]]
    if not dims:
        flat = reshape(b, x, (x.numel,))
        return reshape(b, b.op(c.target, [flat, list(c["shifts"]), [0]], (flat.shape, x.dtype)), x.shape)
    return b.op(c.target, [x, list(c["shifts"]), dims], c.out)


def _pad(b: Builder, c: Call) -> Result:
    return b.op(c.target, [c["self"], list(c["pad"]), c["value"]], c.out)


def _as_strided(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    size, stride = tuple(c["size"]), tuple(c["stride"])
    if not c["storage_offset"]:
        if (size, stride) == (x.shape, c.strides):
            return x
        if prod(size) == x.numel and _packed(size, stride) and _packed(x.shape, c.strides):
            return reshape(b, x, size)
    raise NotImplementedError("as_strided reads memory by address, which has no meaning for a tensor in parts")


def _packed(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor lies in memory row by row, without gaps."""
    step = 1
    for n, s in zip(reversed(size), reversed(stride), strict=True):
        if n != 1 and s != step:
            return False
        step *= n
    return True


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(
        (
            "aten.view.default",
            "aten._unsafe_view.default",
            "aten.reshape.default",
            "aten.view_copy.default",
            "aten._reshape_alias.default",
            "aten.unsqueeze.default",
            "aten.squeeze.default",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.flatten.using_ints",
            "aten.unflatten.int",
        ),
        _reshape,
    ),
    "aten.as_strided.default": _as_strided,
    "aten.permute.default": _permute,
    "aten.t.default": _t,
    "aten.transpose.int": _transpose,
    "aten.expand.default": _expand,
    "aten.slice.Tensor": _slice,
    "aten.slice_backward.default": _slice_backward,
    "aten.select.int": _select,
    "aten.select_backward.default": _select_backward,
    **dict.fromkeys(
        (
            "aten.split.Tensor",
            "aten.split_with_sizes.default",
            "aten.unsafe_split.Tensor",
            "aten.unsafe_split_with_sizes.default",
        ),
        _split,
    ),
    "aten.unbind.int": _unbind,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.flip.default": _flip,
    "aten.roll.default": _roll,
    "aten.constant_pad_nd.default": _pad,
}
