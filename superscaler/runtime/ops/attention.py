"""Attention and its gradient, with the kernel chosen where it runs.

The forward gives the log-sum-exp of the scores beside the output, and the backward starts from both (Dao et al. 2022),
so neither keeps the scores. Torch's fused kernels are used where they apply: any device's math is the fallback.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.region import Region, Span
from superscaler.runtime.ops import fused
from superscaler.runtime.ops.random import keep_mask

Grads = tuple[Tensor, Tensor, Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale + mask) v and the log-sum-exp of the scores.

    ``q``: b h s d; ``k``: b g t d; ``v``: b g t e, with h a multiple of g. ``rest``: [mask], causal, scale (None is
    1/√d), dropout_p, key, seed, region of the output. The mask is boolean (True: attend) or added to the scores. A
    query that may attend to nothing gives zeros.
    """
    mask, causal, scale, p, key, seed, region = rest if len(rest) == 7 else (None, *rest)
    scale = 1 / sqrt(q.shape[-1]) if scale is None else scale
    causal, mask = _masking(q, k, mask, causal, region)
    kernel = fused.choose(q, k, v, mask, causal, p)
    if kernel is not None:
        return kernel.forward(q, k, v, mask, causal, scale)
    scores = _scores(q, k, mask, causal, scale)
    lse = scores.logsumexp(-1)
    weights = _weights(scores, lse)
    if p:
        weights = weights * _kept(p, key, seed, region, k.shape[2], q.device)
    return _heads(weights, v).to(v.dtype), lse


def attention_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any) -> Grads:
    """The gradients of q, k and v; ``rest`` as for :func:`attention`."""
    mask, causal, scale, p, key, seed, region = rest if len(rest) == 7 else (None, *rest)
    scale = 1 / sqrt(q.shape[-1]) if scale is None else scale
    causal, mask = _masking(q, k, mask, causal, region)
    kernel = fused.choose(q, k, v, mask, causal, p)
    if kernel is not None:
        return kernel.backward(g, q, k, v, out, lse, mask, causal, scale)
    weights, ds = _score_gradient(g, q, k, v, out, lse, mask, causal, scale, p, key, seed, region)
    dq = _heads(ds, k).mul_(scale)
    return dq.to(q.dtype), (_to_keys(ds, q, k) * scale).to(k.dtype), _to_keys(weights, g, v).to(v.dtype)


def attention_mask_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor,
    causal: bool, scale: float | None, p: float, key: int, seed: tuple[int, int], region: Region,
) -> Tensor:  # fmt: skip
    """The gradient of an additive mask (a learned position bias); ``region`` is that of the mask."""
    scale = 1 / sqrt(q.shape[-1]) if scale is None else scale
    is_causal, whole = _masking(q, k, mask, causal, region)
    ds = _score_gradient(g, q, k, v, out, lse, whole, is_causal, scale, p, key, seed, region)[1]
    return ds.sum_to_size(mask.shape).to(mask.dtype)


def _masking(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, region: Region) -> tuple[bool, Tensor | None]:
    """Causality as a flag where the queries start at the first one, else as (part of) a mask."""
    if not causal:
        return False, mask
    rows = region[-2] if len(region) > 1 else Span()
    queries = rows if rows.size == q.shape[2] else Span.full(q.shape[2])  # a mask of one row: all queries are here
    if mask is None and queries.contiguous and queries.start == 0:
        return True, None
    allowed = _causal(queries, k.shape[2], q.device)
    if mask is None or mask.dtype == torch.bool:
        return False, allowed if mask is None else mask & allowed
    return False, mask.masked_fill(~allowed, float("-inf"))


def _causal(queries: Span, keys: int, device: torch.device) -> Tensor:
    rows = torch.cat([torch.arange(start, stop, device=device) for start, stop in queries or ((0, 0),)])
    return rows.unsqueeze(1) >= torch.arange(keys, device=device)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _rows(x: Tensor, keys: Tensor) -> int:
    """The rows of ``x`` (b h s …) that share one key head: those of all its query heads."""
    return x.shape[1] * x.shape[2] // max(keys.shape[1], 1)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """b h s t, in float32 at least; the query heads that share a key head are one matrix product."""
    b, h, s, d = q.shape
    grouped = _wide(q).reshape(b, k.shape[1], _rows(q, k), d)
    scores = torch.matmul(grouped, _wide(k).transpose(-1, -2)).mul_(scale).view(b, h, s, k.shape[2])
    if causal:
        mask = _causal(Span.full(s), k.shape[2], q.device)
    if mask is None:
        return scores
    return scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores − lse), zeros in the rows that attend to nothing."""
    return scores.sub_(lse.masked_fill(lse == float("-inf"), 0).unsqueeze(-1)).exp_()


def _kept(p: float, key: int, seed: tuple[int, int], region: Region, keys: int, device: torch.device) -> Tensor:
    """The dropout of the weights, scaled: by the global (batch, head, query, key) of each."""
    return keep_mask(Region((*region[:3], *Region.full((keys,)))), p, key, seed, device) / (1 - p)


def _heads(weights: Tensor, values: Tensor) -> Tensor:
    """weights (b h s t) times values (b g t e), per group of heads: b h s e."""
    b, h, s, t = weights.shape
    grouped = weights.reshape(b, values.shape[1], _rows(weights, values), t)
    return torch.matmul(grouped, _wide(values)).view(b, h, s, values.shape[3])


def _to_keys(weights: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """weightsᵀ (b h t s) times rows (b h s e), summed over each group of heads: b g t e."""
    b, g = like.shape[:2]
    count = _rows(weights, like)
    grouped = weights.reshape(b, g, count, weights.shape[3])
    return torch.matmul(grouped.transpose(-1, -2), _wide(rows).reshape(b, g, count, rows.shape[3]))


def _score_gradient(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None,
    causal: bool, scale: float, p: float, key: int, seed: tuple[int, int], region: Region,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The weights (after dropout) and the gradient of the scores."""
    weights = _weights(_scores(q, k, mask, causal, scale), lse)
    b, h, s, _ = q.shape
    grouped = _wide(g).reshape(b, k.shape[1], _rows(g, k), g.shape[3])
    dp = torch.matmul(grouped, _wide(v).transpose(-1, -2)).view(b, h, s, k.shape[2])
    dropped = weights
    if p:
        kept = _kept(p, key, seed, region, k.shape[2], q.device)
        dropped, dp = weights * kept, dp * kept
    delta = (_wide(g) * _wide(out)).sum(-1, keepdim=True)
    return dropped, weights * dp.sub_(delta)
