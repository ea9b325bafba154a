"""Views, blocks and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` in another shape: a view where it can be one."""
    return x.reshape(shape)


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Dims of size one, and new leading ones, repeated (a view)."""
    return x.expand(shape)


def block(x: Tensor, dim: int, index: int, length: int) -> Tensor:
    """The ``index``-th of the consecutive blocks of ``length`` of a dim (a view)."""
    return x.narrow(dim, index * length, length)


def unblock(x: Tensor, dim: int, index: int, count: int) -> Tensor:
    """``x`` as the ``index``-th of ``count`` blocks along a dim, zeros in the others."""
    shape = list(x.shape)
    length = shape[dim]
    shape[dim] = length * count
    out = x.new_zeros(shape)
    out.narrow(dim, index * length, length).copy_(x)
    return out


def slice_backward(grad: Tensor, shape: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros of ``shape`` with ``grad`` at ``start:end:step`` of a dim."""
    out = grad.new_zeros(shape)
    where = [slice(None)] * out.ndim
    size = out.shape[dim]
    where[dim] = slice(*(slice(start, end).indices(size)[:2]), step)
    out[tuple(where)] = grad
    return out


def select_backward(grad: Tensor, shape: Sequence[int], dim: int, index: int) -> Tensor:
    """Zeros of ``shape`` with ``grad`` at one index of a dim."""
    out = grad.new_zeros(shape)
    out.select(dim, index).copy_(grad)
    return out
