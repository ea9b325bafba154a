"""Attention of new tokens over cached keys and values that are contiguous per sequence, by their base addresses.

``decode``: one new token per sequence. ``prefill``: any number of new tokens behind a cached prefix. Both take
sequences of unequal length and grouped query heads; both run on a GPU, or in Triton's interpreter
(``TRITON_INTERPRET=1`` before triton is imported) on the CPU. Triton is imported by the first call.
"""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from superscaler.errors import BackendUnavailable, UsageError
from superscaler.runtime.kernels.interpreter import mend

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PREFILL_BLOCKS = 128, 64, 8  # queries and tokens of a program, and its warps


@dataclass(frozen=True, slots=True)
class CachedKV:
    """One layer's keys and values of a batch of sequences.

    ``keys``, ``values``: int64 ``[batch]``, the address of each sequence's first row. ``lengths``: int32 ``[batch]``,
    tokens in each, the new ones included. Rows are ``token_stride`` elements of ``dtype`` apart, and each begins with
    ``heads`` key-value heads of ``dim`` elements.
    """

    keys: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor
    longest: int
    heads: int
    dim: int
    token_stride: int
    dtype: torch.dtype


def decode(query: torch.Tensor, cached: CachedKV, *, scale: float | None = None, splits: int = 0) -> torch.Tensor:
    """Attention of one token per sequence: ``query`` ``[batch, query heads, dim]``; the result is alike.

    ``splits``: into how many parts each sequence is cut, worked on at the same time (0: as many as fill the device).
    A sequence of length 0 yields zeros.
    """
    programs = _programs(query, cached)
    batch, query_heads, dim = query.shape
    group = _group(query_heads, cached)
    _one_per_sequence(query, cached)
    if splits < 0:
        raise UsageError(f"attention in {splits} parts", hint="0 for as many as fill the device")
    # Of many queries that share keys, more blocks: one large block would take minutes to compile.
    block_m, block_n = min(_power_of_two(group, least=16), 32), 64
    blocks = cached.heads * -(-group // block_m)
    splits = splits or _splits(batch * blocks, cached.longest, block_n, query.device)
    parts = torch.empty((batch, query_heads, splits, dim), dtype=torch.float32, device=query.device)
    lse = torch.empty((batch, query_heads, splits), dtype=torch.float32, device=query.device)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    block_d = _power_of_two(dim, least=16)
    programs.decode_split[(batch, blocks, splits)](
        query.contiguous(), cached.keys, cached.values, cached.lengths, parts, lse,
        dim**-0.5 if scale is None else scale, cached.heads, dim, cached.token_stride, splits,
        GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d,
        PRECISE=_precise(cached.dtype), ALIGN=_alignment(cached), num_stages=_stages(cached),
    )  # fmt: skip
    programs.decode_combine[(batch * query_heads,)](
        parts, lse, out, dim, splits, BLOCK_S=_power_of_two(splits, least=16), BLOCK_D=block_d
    )
    return out


def store(keys: torch.Tensor, values: torch.Tensor, cached: CachedKV) -> None:
    """Write one new token per sequence, ``[batch, heads, dim]``, into the last row of each: before :func:`decode`."""
    programs = _programs(keys, cached)
    _one_per_sequence(keys, cached)
    if keys.shape[1] != cached.heads or (values.shape, values.dtype) != (keys.shape, keys.dtype):
        raise UsageError(
            f"keys {list(keys.shape)} {keys.dtype} and values {list(values.shape)} {values.dtype} to store",
            hint=f"alike, of {cached.heads} heads",
        )
    width = cached.heads * cached.dim
    flat = [x.reshape(x.shape[0], width) for x in (keys, values)]
    rows = [x if x.stride(1) == 1 else x.contiguous() for x in flat]
    programs.store[(len(rows[0]),)](
        *rows, rows[0].stride(0), rows[1].stride(0), cached.keys, cached.values, cached.lengths,
        width, cached.token_stride, BLOCK=_power_of_two(width, least=16),
    )  # fmt: skip


def prefill(
    query: torch.Tensor, starts: torch.Tensor, most: int, cached: CachedKV, *, scale: float | None = None
) -> torch.Tensor:
    """Causal attention of the new tokens of each sequence over all its tokens, the new ones being its last.

    ``query``: ``[new tokens, query heads, dim]``, sequence after sequence; sequence ``i`` has the rows ``starts[i]`` to
    ``starts[i + 1]`` (int32 ``[batch + 1]``), at most ``most`` of them. The result is like ``query``.
    """
    programs = _programs(query, cached)
    _, query_heads, dim = query.shape
    group = _group(query_heads, cached)
    if starts.numel() != cached.lengths.numel() + 1:
        raise UsageError(f"{starts.numel()} starts for {cached.lengths.numel()} sequences", hint="one more than these")
    block_m, block_n, warps = PREFILL_BLOCKS if _small(cached) else (32, 32, 4)
    batch = cached.lengths.numel()
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if not most or not batch:
        return out
    programs.prefill[(-(-most // block_m), query_heads, batch)](
        query.contiguous(), starts, cached.keys, cached.values, cached.lengths, out,
        dim**-0.5 if scale is None else scale, query_heads, dim, cached.token_stride,
        GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=_power_of_two(dim, least=16),
        PRECISE=_precise(cached.dtype), ALIGN=_alignment(cached), num_warps=warps, num_stages=_stages(cached),
    )  # fmt: skip
    return out


def takes(dtype: torch.dtype, dim: int, value_dim: int) -> bool:
    """Whether the kernels can take queries and keys of ``dim`` elements of a dtype, and values of ``value_dim``."""
    return dtype in _DTYPES and dim == value_dim <= 256


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _programs(query: torch.Tensor, cached: CachedKV) -> Any:
    """The module of the kernels, after a check that they can take this."""
    if query.dtype != cached.dtype or not takes(cached.dtype, query.shape[-1], cached.dim):
        raise UsageError(
            f"attention of {query.dtype} queries of {query.shape[-1]} over {cached.dtype} keys of {cached.dim}",
            hint="alike, at most 256 of float16, bfloat16 or float32",
        )
    if query.ndim != 3 or query.device != cached.lengths.device:
        raise UsageError(
            f"attention of a tensor {list(query.shape)} on {query.device}, over a cache on {cached.lengths.device}",
            hint="[tokens, heads, dim], on the device of the cache",
        )
    if query.device.type == "cpu" and not interpreted():
        raise BackendUnavailable(
            "Triton's kernels need a GPU", hint="scaled_dot_product_attention on the views, or TRITON_INTERPRET=1"
        )
    if interpreted():
        mend()
    return importlib.import_module("superscaler.runtime.kernels.programs")


def _group(query_heads: int, cached: CachedKV) -> int:
    group, rest = divmod(query_heads, cached.heads)
    if rest or not group:
        raise UsageError(f"{query_heads} query heads over {cached.heads} key-value heads", hint="a multiple")
    return group


def _one_per_sequence(rows: torch.Tensor, cached: CachedKV) -> None:
    if len(rows) != cached.lengths.numel():
        raise UsageError(f"{len(rows)} tokens for {cached.lengths.numel()} sequences", hint="one for each")


def _precise(dtype: torch.dtype) -> bool:
    # The interpreter's product of bfloat16 is wrong.
    return dtype == torch.float32 or interpreted()


def _small(cached: CachedKV) -> bool:
    """Whether a row is small enough for large blocks in the shared memory of any device."""
    return cached.dim * cached.dtype.itemsize <= 256


def _stages(cached: CachedKV) -> int:
    """How many blocks are on their way from memory at a time."""
    return 2 if _small(cached) else 1


def _alignment(cached: CachedKV) -> int:
    """Bytes of which the addresses of all rows are multiples (at most what one load reads)."""
    size = cached.dtype.itemsize
    return math.gcd(16, cached.dim * size, cached.token_stride * size)


def _splits(programs: int, longest: int, block: int, device: torch.device) -> int:
    """Enough parts for eight programs per multiprocessor, so that the last wave of them is a small part of the time;
    each at least two blocks long, or combining them would not be."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(-(-longest // (2 * block)), -(-8 * processors // max(programs, 1)), 64))


def _power_of_two(number: int, *, least: int) -> int:
    return max(least, 1 << math.ceil(math.log2(max(number, 1))))
