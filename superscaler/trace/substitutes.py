"""Functions that say less about their dims than they could, as compositions in which every dim splits.

Pooling over windows that do not overlap is a reshape and a mean, upsampling by whole factors a repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import transformer

from superscaler.trace.normalization import batch_norm

Pool = Callable[..., Tensor]


def _each(value: Any, rank: int) -> list[int | None]:
    return list(value) if isinstance(value, Sequence) else [value] * rank


def _windows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean over equal windows, ``counts`` of them along the last dims."""
    lead = x.shape[: x.ndim - len(counts)]
    sizes = x.shape[x.ndim - len(counts) :]
    pairs = [n for size, count in zip(sizes, counts, strict=True) for n in (count, size // count)]
    inner = [len(lead) + 1 + 2 * i for i in range(len(counts))]
    return x.reshape(*lead, *pairs).mean(inner)


def _adaptive(rank: int, plain: Pool) -> Pool:
    def pool(input: Tensor, output_size: Any) -> Tensor:
        sizes = input.shape[input.ndim - rank :]
        counts = [size if n is None else n for n, size in zip(_each(output_size, rank), sizes, strict=True)]
        if all(n and size % n == 0 for n, size in zip(counts, sizes, strict=True)):
            return _windows(input, counts)
        return plain(input, output_size)

    return pool


def _average(rank: int, plain: Pool) -> Pool:
    def pool(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any
    ) -> Tensor:
        kernel, sizes = _each(kernel_size, rank), input.shape[input.ndim - rank :]
        apart = stride is None or _each(stride, rank) == kernel
        padded = any(_each(padding, rank)) or kwargs.get("divisor_override") or len(args) > 2
        if apart and not padded and all(k and size % k == 0 for k, size in zip(kernel, sizes, strict=True)):
            return _windows(input, [size // k for k, size in zip(kernel, sizes, strict=True) if k])
        return plain(input, kernel_size, stride, padding, *args, **kwargs)

    return pool


def _nearest(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *args: Any, **kwargs: Any
) -> Tensor:
    """``F.interpolate``: by whole factors the nearest neighbour is each element repeated."""
    rank = input.ndim - 2
    factors = _each(scale_factor, rank)
    if mode != "nearest" or size is not None or not all(f and float(f).is_integer() for f in factors):
        return F.interpolate(input, size, scale_factor, mode, *args, **kwargs)
    for dim, factor in enumerate(factors, start=2):
        input = input.repeat_interleave(int(factor or 1), dim)
    return input


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.einsum("...i,kij,...j->...k", input1, weight, input2)
    return out if bias is None else out + bias


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``F.embedding_bag`` of bags of equal length: a lookup and a sum, or the largest."""
    if input.ndim != 2 or max_norm is not None or scale_grad_by_freq:
        return F.embedding_bag(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
            include_last_offset, padding_idx,
        )  # fmt: skip
    rows = F.embedding(input, weight)
    if mode == "max":
        return _largest(rows, input, padding_idx)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if padding_idx is None:
        return rows.sum(1) if mode == "sum" else rows.mean(1)
    kept = (input != padding_idx % weight.shape[0]).unsqueeze(-1).to(rows.dtype)
    total = (rows * kept).sum(1)
    return total if mode == "sum" else total / kept.sum(1).clamp(min=1)


def _largest(rows: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
    """The largest of each bag; zeros for a bag of nothing but padding."""
    if padding_idx is None:
        return rows.max(1).values
    padding = (ids == padding_idx).unsqueeze(-1)
    return rows.masked_fill(padding, -torch.inf).max(1).values.masked_fill(padding.all(1), 0.0)


def _multilabel_margin(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    """``F.multilabel_margin_loss``: the form that torch traces counts labels after the first -1 too (torch 2.13)."""
    if size_average is not None or reduce is not None:
        return F.multilabel_margin_loss(input, target, size_average, reduce, reduction)
    labels = (target < 0).cumsum(-1) == 0
    places = torch.arange(input.shape[-1], device=input.device)
    chosen = ((places == target.unsqueeze(-1)) & labels.unsqueeze(-1)).any(-2)
    scores = torch.gather(input, -1, torch.where(labels, target, 0))
    over = (1 - scores.unsqueeze(-1) + input.unsqueeze(-2)).clamp(min=0)
    each = torch.where(labels.unsqueeze(-1) & ~chosen.unsqueeze(-2), over, 0).sum((-1, -2)) / input.shape[-1]
    return {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]


def _gaussian_nll(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """``F.gaussian_nll_loss`` without the look at whether a variance is negative, which no graph can take."""
    spread = var.clone() if isinstance(var, Tensor) else torch.full_like(input, var)
    with torch.no_grad():
        spread.clamp_(min=eps)
    if spread.ndim == input.ndim - 1:
        spread = spread.unsqueeze(-1)
    each = 0.5 * (spread.log() + (input - target) ** 2 / spread) + (0.5 * math.log(2 * math.pi) if full else 0.0)
    return {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]


def _set_where(x: Tensor, key: Any, value: Any) -> None:
    """``x[mask] = value``, where the value is the same however many elements the mask has: a choice between two."""
    mask: Any = key[0] if type(key) is tuple and len(key) == 1 else key  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    rank = value.ndim if isinstance(value, Tensor) else 0 if isinstance(value, int | float) else x.ndim
    masks = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim > 0
    if masks and rank <= x.ndim - mask.ndim and mask.shape == x.shape[: mask.ndim]:
        x.copy_(torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)), value, x))
    else:
        x[key] = value


def _inverse(input: Tensor) -> Tensor:
    """``torch.linalg.inv`` without the look at whether it exists, which no graph can take: else it is not finite."""
    return torch.linalg.inv_ex(input)[0]


def _cholesky(input: Tensor, *, upper: bool = False) -> Tensor:
    return torch.linalg.cholesky_ex(input, upper=upper)[0]


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    return torch.linalg.solve_ex(A, B, left=left)[0]


def _as_hinted(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)


@contextmanager
def masks_unread() -> Generator[None]:
    """Inside it ``nn.Transformer`` applies its masks without looking whether they are causal, which is a hint only."""
    module: Any = transformer
    saved = module._detect_is_causal_mask
    module._detect_is_causal_mask = _as_hinted
    try:
        yield
    finally:
        module._detect_is_causal_mask = saved


HANDLERS: dict[Any, Callable[..., Any]] = {
    **{f: _adaptive(1, f) for f in (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)},
    F.batch_norm: batch_norm,
    F.adaptive_avg_pool2d: _adaptive(2, F.adaptive_avg_pool2d),
    F.adaptive_avg_pool3d: _adaptive(3, F.adaptive_avg_pool3d),
    F.interpolate: _nearest,
    F.bilinear: _bilinear,
    F.embedding_bag: _embedding_bag,
    F.multilabel_margin_loss: _multilabel_margin,
    F.gaussian_nll_loss: _gaussian_nll,
    Tensor.__setitem__: _set_where,
    **dict.fromkeys((torch.linalg.inv, torch.inverse, Tensor.inverse), _inverse),
    torch.linalg.cholesky: _cholesky,
    torch.linalg.solve: _solve,
    F.avg_pool1d: _average(1, F.avg_pool1d),
    F.avg_pool2d: _average(2, F.avg_pool2d),
    F.avg_pool3d: _average(3, F.avg_pool3d),
}
