"""Views: they compose with those before them, and vanish where they change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul

from superscaler.trace.draft import Builder, Shape, Value


def reshape(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """``x`` with these sizes (of as many elements)."""
    target = tuple(shape)
    if x.fill is not None:
        return b.full(target, x.fill, x.dtype)
    base = x
    while base.op is not None and base.op.target == "superscaler.reshape":
        before = base.op.inputs[0]
        if before.shape != target and not _nested(before.shape, target):
            break
        base = before
    if base.shape == target:
        return base
    if base.op is not None and base.op.target == "aten.sum.dim_IntList" and _squeezed(base, target):
        return b.op("aten.sum.dim_IntList", [base.op.inputs[0], base.op.args[1], False], (target, x.dtype))
    return b.op("superscaler.reshape", [base, "#shape"], (target, x.dtype))


def _squeezed(total: Value, shape: Shape) -> bool:
    """Whether ``shape`` is that of a sum without the dims that it kept."""
    assert total.op is not None
    _, dims, keepdim = total.op.args
    return keepdim and shape == tuple(n for i, n in enumerate(total.shape) if i not in dims)


def _nested(first: Shape, last: Shape) -> bool:
    """Whether one reshape says where every digit goes: the boundaries of both shapes divide one another."""
    return all(low and high % low == 0 for low, high in pairwise(sorted(_boundaries(first) | _boundaries(last))))


def _boundaries(shape: Shape) -> set[int]:
    return set(accumulate(reversed(shape), mul, initial=1))


def permute(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """Dim ``i`` of the result is dim ``dims[i]`` of ``x``."""
    order = tuple(d % x.rank for d in dims)
    if x.fill is not None:
        return b.full(tuple(x.shape[d] for d in order), x.fill, x.dtype)
    if x.op is not None and x.op.target == "aten.permute.default":
        inner: list[int] = x.op.args[1]
        order = tuple(inner[d] for d in order)
        x = x.op.inputs[0]
    shape = tuple(x.shape[d] for d in order)
    if order == tuple(range(x.rank)):
        return x
    if [d for d in order if x.shape[d] != 1] == [d for d in range(x.rank) if x.shape[d] != 1]:
        return reshape(b, x, shape)
    return b.op("aten.permute.default", [x, list(order)], (shape, x.dtype))


def transpose(b: Builder, x: Value, first: int, second: int) -> Value:
    """Two dims exchanged."""
    order = list(range(x.rank))
    if x.rank:
        i, j = first % x.rank, second % x.rank
        order[i], order[j] = order[j], order[i]
    return permute(b, x, order)


def expand(b: Builder, x: Value, shape: Sequence[int]) -> Value:
    """Broadcast to ``shape``; -1 keeps a size."""
    new = len(shape) - x.rank
    target = tuple(x.shape[i - new] if n == -1 else n for i, n in enumerate(shape))
    if x.fill is not None:
        return b.full(target, x.fill, x.dtype)
    if x.shape == target:
        return x
    return b.op("superscaler.expand", [x, "#shape"], (target, x.dtype))


def unsqueeze(b: Builder, x: Value, dim: int) -> Value:
    """A dim of size one inserted."""
    at = dim % (x.rank + 1)
    return reshape(b, x, (*x.shape[:at], 1, *x.shape[at:]))


def block(b: Builder, x: Value, dim: int, start: int, length: int) -> Value:
    """``length`` elements of a dim from ``start``: a block where they are aligned, else a slice."""
    size = x.shape[dim]
    if length == size:
        return x
    like = ((*x.shape[:dim], length, *x.shape[dim + 1 :]), x.dtype)
    if x.fill is not None:
        return b.full(like[0], x.fill, x.dtype)
    if length and size % length == 0 and start % length == 0:
        return b.op("superscaler.block", [x, dim, start // length, "#local:l"], like)
    return b.op("aten.slice.Tensor", [x, dim, start, start + length, 1], like)


def unblock(b: Builder, x: Value, dim: int, start: int, size: int) -> Value:
    """The adjoint of :func:`block`: ``x`` at ``start`` of a dim of ``size``, zeros elsewhere."""
    length = x.shape[dim]
    if length == size:
        return x
    like = ((*x.shape[:dim], size, *x.shape[dim + 1 :]), x.dtype)
    if length and size % length == 0 and start % length == 0:
        return b.op("superscaler.unblock", [x, dim, start // length, size // length], like)
    return b.op("superscaler.slice_backward", [x, "#shape", dim, start, start + length, 1], like)
