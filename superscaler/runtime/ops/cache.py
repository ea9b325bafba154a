"""Caches of keys and values [tokens, batch, heads, dim]: rows are appended, and attended to.

What a worker holds of a cache may be shorter than its logical shape: the rows that are mapped so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from superscaler.ir.region import Region
from superscaler.runtime.ops.attention import attention


def cache_append_(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """``new`` (b h s d) into the rows of ``cache`` (t b h d) from ``start`` on, in place."""
    first = int(start)
    cache[first : first + new.shape[2]] = new.permute(2, 0, 1, 3)
    return cache


def cache_append(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """As :func:`cache_append_`, into a copy."""
    return cache_append_(cache.clone(), new, start)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, start: Tensor, scale: float) -> Tensor:
    """Attention of queries ``start``, ``start + 1``, … (b h s d), each to the rows up to its own (t b g d): b h s e."""
    first, count = int(start), q.shape[2]
    k, v = (x[: first + count].permute(1, 2, 0, 3) for x in (keys, values))
    causal = count > 1 and first == 0
    mask: tuple[Tensor, ...] = ()
    if count > 1 and first:
        rows = torch.arange(first, first + count, device=q.device)
        mask = (rows.unsqueeze(1) >= torch.arange(first + count, device=q.device),)
    return attention(q, k, v, *mask, causal, scale, 0.0, 0, (0, 0), Region.full(q.shape))[0]
