"""Attention while tracing: one op wherever there is one for it, else its parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from superscaler.trace import library


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    site: int,
) -> Tensor:
    """As ``F.scaled_dot_product_attention``; a mask [1|b, 1|h, 1|s, t] may come together with ``is_causal``."""
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    if not (_fits(query, key, value, attn_mask) and _fusible(attn_mask, dropout_p, is_causal)):
        return _in_parts(query, key, value, attn_mask, dropout_p, is_causal, factor, enable_gqa, site)
    q, k, v = (_four_dims(x) for x in (query, key, value))
    mask = None if attn_mask is None else _four_dims(attn_mask)
    out, _ = library.attention(q, k, v, mask, bool(is_causal), factor, float(dropout_p), site)
    return out.reshape(*query.shape[:-1], value.shape[-1])


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the batch dims are equal, and merge into one without copying a broadcast mask."""
    batch = query.shape[:-3]
    equal = key.shape[:-3] == batch and value.shape[:-3] == batch and query.ndim >= 3
    return equal and (mask is None or query.ndim <= 4 or mask.numel() == mask.shape[-1] * mask.shape[-2])


def _fusible(mask: Tensor | None, dropout: float, causal: bool) -> bool:
    """A learned mask has a gradient op of its own, which knows neither dropout nor queries that share one row."""
    if mask is None or not mask.requires_grad:
        return True
    return dropout == 0.0 and not (causal and mask.shape[-2:-1] == (1,))


def _four_dims(x: Tensor) -> Tensor:
    """[b, h, s, d]: leading dims merged, or added where they are missing."""
    if x.ndim > 4:
        return x.flatten(0, x.ndim - 4)
    if x.ndim == 3:
        return x.unsqueeze(0)
    return x.reshape(*(1 for _ in range(4 - x.ndim)), *x.shape)


def _in_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    grouped: bool,
    site: int,
) -> Tensor:
    if grouped and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    if causal:
        rows = torch.arange(query.shape[-2], device=query.device)[:, None]
        columns = torch.arange(key.shape[-2], device=query.device)[None, :]
        scores = torch.where(columns <= rows, scores, -math.inf)
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    if dropout > 0.0:
        weights = library.dropout(weights, dropout, site)
    return torch.matmul(weights, value)
