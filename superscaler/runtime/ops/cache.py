"""Caches of keys and values [tokens, batch, heads, dim]: rows are appended, and attended to.

What a worker holds of a cache may be shorter than its logical shape: the rows that are mapped so far. How many of them
are filled is a tensor: on a CPU it is read, on a GPU nothing here does, or every layer would wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from superscaler.ir.region import Region
from superscaler.runtime.kernels.attention import CachedKV, decode, prefill, takes
from superscaler.runtime.ops.attention import attention

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, float | None], Tensor]


def cache_append_(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """``new`` (b h s d) into the rows of ``cache`` (t b h d) from ``start`` on, in place."""
    rows = new.permute(2, 0, 1, 3)
    if readable(start):
        first = int(start)
        cache[first : first + len(rows)] = rows
        return cache
    return cache.index_copy_(0, start + torch.arange(len(rows), device=start.device), rows)


def cache_append(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """As :func:`cache_append_`, into a copy."""
    return cache_append_(cache.clone(), new, start)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, start: Tensor, scale: float | None) -> Tensor:
    """Attention of queries ``start``, ``start + 1``, … (b h s d), each to the rows up to its own (t b g d): b h s e."""
    return choose(q, values, start)(q, keys, values, start, scale)


def choose(q: Tensor, values: Tensor, start: Tensor) -> Kernel:
    """The kernel for these operands."""
    if readable(start):
        return over_filled
    return over_addresses if takes(q.dtype, q.shape[-1], values.shape[-1]) else over_all


def readable(start: Tensor) -> bool:
    """Whether a number can be read without waiting."""
    return start.device.type == "cpu"


def over_filled(q: Tensor, keys: Tensor, values: Tensor, start: Tensor, scale: float | None) -> Tensor:
    """Attention to the filled rows, with any kernel: where ``start`` can be read."""
    first, count = int(start), q.shape[2]
    k, v = (x[: first + count].permute(1, 2, 0, 3) for x in (keys, values))
    causal = count > 1 and first == 0
    mask = (_visible(start, count, first + count),) if count > 1 and first else ()
    return attention(q, k, v, *mask, causal, scale, 0.0, 0, (0, 0), Region.full(q.shape))[0]


def over_all(q: Tensor, keys: Tensor, values: Tensor, start: Tensor, scale: float | None) -> Tensor:
    """Attention to all rows, those that are not filled yet masked: for dtypes that no kernel of ours has."""
    mask = _visible(start, q.shape[2], len(keys))
    # What was never written may be no number, and zero times that is none either.
    k, v = (x.permute(1, 2, 0, 3).masked_fill(~mask[-1][:, None], 0) for x in (keys, values))
    return attention(q, k, v, mask, False, scale, 0.0, 0, (0, 0), Region.full(q.shape))[0]


def _visible(start: Tensor, count: int, rows: int) -> Tensor:
    """Which rows each of ``count`` queries may see."""
    index = torch.arange(max(count, rows), device=start.device)
    return (start + index[:count]).unsqueeze(1) >= index[:rows]


def over_addresses(q: Tensor, keys: Tensor, values: Tensor, start: Tensor, scale: float | None) -> Tensor:
    """Attention by our Triton kernels: split flash-decode for one query, prefix prefill for several."""
    batch, heads, count, dim = q.shape
    lengths = (start + count).to(torch.int32).expand(batch).contiguous()
    cached = CachedKV(
        keys=_addresses(keys), values=_addresses(values), lengths=lengths, longest=len(keys),
        heads=keys.shape[2], dim=dim, token_stride=keys.stride(0), dtype=keys.dtype,
    )  # fmt: skip
    if count == 1:
        return decode(q[:, :, 0], cached, scale=scale).unsqueeze(2)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device).mul_(count)
    rows = q.transpose(1, 2).reshape(batch * count, heads, dim)
    out = prefill(rows, starts, count, cached, scale=scale)
    return out.view(batch, count, heads, dim).transpose(1, 2).contiguous()


def _addresses(cache: Tensor) -> Tensor:
    """Where the rows of each sequence begin; made on the device, from numbers."""
    index = torch.arange(cache.shape[1], dtype=torch.int64, device=cache.device)
    return index.mul_(cache.stride(1) * cache.element_size()).add_(cache.data_ptr())
