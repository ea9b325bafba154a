"""The Triton programs. Import only where they run: this imports triton.

Sequences are given by the addresses at which their keys and values begin, so there is no page table and no gather; a
token's row is ``token_stride`` elements, a head's part of it ``dim``. Softmax is computed online in float32 (Milakov
and Gimelshein, arXiv 1805.02867); decoding splits a sequence over programs and combines their parts by their
log-sum-exp (Flash-Decoding). Queries, keys and values are of one dtype. ``ALIGN``: bytes of which every row's address
is a multiple; the compiler cannot know it of an address that it loads, and reads bytes one by one without.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (The types that triton declares are not those that its compiler goes by.)

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    token: tl.tensor,
    seen: tl.tensor,
    stop: tl.tensor,
    stride: tl.tensor,
    column: tl.tensor,
    dim: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    MASKED: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """One block of tokens: scores, then the running maximum, normaliser and weighted sum of values.

    ``token`` [N]: the block's positions. If ``MASKED``, those from ``stop`` on do not exist, and query row i may see
    the first ``seen[i]`` (``seen`` [M]); else all are there and seen by all.
    """
    inside = column[None, :] < dim
    if MASKED:
        inside = inside & (token[:, None] < stop)
    at = token[:, None].to(tl.int64) * stride + column[None, :]
    key = tl.load(keys + at, mask=inside, other=0.0)
    value = tl.load(values + at, mask=inside, other=0.0)
    if PRECISE:
        key = key.to(tl.float32)
        value = value.to(tl.float32)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * LOG2_E
    if MASKED:
        visible = (token[None, :] < seen[:, None]) & (token[None, :] < stop)
        scores = tl.where(visible, scores, float("-inf"))
    highest = tl.maximum(best, tl.max(scores, 1))
    # A row that has seen nothing yet has no maximum: shift it by zero instead.
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(best - shift)
    total = total * decay + tl.sum(weights, 1)
    sums = sums * decay[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return highest, total, sums


@triton.jit(do_not_specialize=["splits"])
def decode_split(
    query_ptr: tl.tensor,
    key_addresses: tl.tensor,
    value_addresses: tl.tensor,
    lengths: tl.tensor,
    part_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    scale: tl.tensor,
    heads: tl.tensor,
    dim: tl.tensor,
    token_stride: tl.tensor,
    splits: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """One split of one sequence for some queries of one key-value head; grid (batch, heads * parts, splits), where
    ``parts`` blocks are all queries of a head."""
    parts: tl.constexpr = (GROUP + BLOCK_M - 1) // BLOCK_M
    batch, head, split = tl.program_id(0), tl.program_id(1) // parts, tl.program_id(2)
    row, column = tl.program_id(1) % parts * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    length = tl.load(lengths + batch)
    # Each sequence is cut evenly by itself, whatever the others' lengths are.
    width = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    first, stop = split * width, tl.minimum(split * width + width, length)
    line = (batch * heads + head) * GROUP + row
    wanted = (row[:, None] < GROUP) & (column[None, :] < dim)
    query = tl.load(query_ptr + line[:, None] * dim + column[None, :], mask=wanted, other=0.0)
    query = (query.to(tl.float32) * scale).to(tl.float32 if PRECISE else query.dtype)
    keys = tl.multiple_of(tl.load(key_addresses + batch).to(query_ptr.dtype) + head * dim, ALIGN)
    values = tl.multiple_of(tl.load(value_addresses + batch).to(query_ptr.dtype) + head * dim, ALIGN)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    seen = tl.zeros([BLOCK_M], tl.int32) + length
    whole = first + tl.maximum(stop - first, 0) // BLOCK_N * BLOCK_N
    for token in tl.range(first, whole, BLOCK_N):
        block = token + tl.arange(0, BLOCK_N)
        best, total, sums = _attend(
            query, keys, values, block, seen, stop, token_stride, column, dim, best, total, sums, False, PRECISE
        )
    if whole < stop:
        block = whole + tl.arange(0, BLOCK_N)
        best, total, sums = _attend(
            query, keys, values, block, seen, stop, token_stride, column, dim, best, total, sums, True, PRECISE
        )
    empty = total == 0.0
    at = line * splits + split
    tl.store(part_ptr + at[:, None] * dim + column[None, :], sums / tl.where(empty, 1.0, total)[:, None], mask=wanted)
    lse = tl.where(empty, float("-inf"), best + tl.log2(tl.where(empty, 1.0, total)))
    tl.store(lse_ptr + at, lse, mask=row < GROUP)


@triton.jit(do_not_specialize=["splits"])
def decode_combine(
    part_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    out_ptr: tl.tensor,
    dim: tl.tensor,
    splits: tl.tensor,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The splits of one query row become its output; grid (batch * query heads)."""
    row = tl.program_id(0)
    split, column = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    lse = tl.load(lse_ptr + row * splits + split, mask=split < splits, other=float("-inf"))
    best = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(best == float("-inf"), 0.0, best))
    at = (row * splits + split[:, None]) * dim + column[None, :]
    inside = (split[:, None] < splits) & (column[None, :] < dim)
    parts = tl.load(part_ptr + at, mask=inside, other=0.0)
    total = tl.sum(weights, 0)
    out = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * dim + column, out, mask=column < dim)


@triton.jit
def prefill(
    query_ptr: tl.tensor,
    starts: tl.tensor,
    key_addresses: tl.tensor,
    value_addresses: tl.tensor,
    lengths: tl.tensor,
    out_ptr: tl.tensor,
    scale: tl.tensor,
    query_heads: tl.tensor,
    dim: tl.tensor,
    token_stride: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """A block of one sequence's new tokens, which see the cached ones and each other's past; one query head.

    Grid (blocks of the longest, query heads, batch). The new tokens are the last of each sequence.
    """
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts + batch)
    count = tl.load(starts + batch + 1) - first
    if block * BLOCK_M >= count:
        return
    length = tl.load(lengths + batch)
    row, column = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    wanted = (row[:, None] < count) & (column[None, :] < dim)
    at = ((first + row[:, None]).to(tl.int64) * query_heads + head) * dim + column[None, :]
    query = tl.load(query_ptr + at, mask=wanted, other=0.0)
    query = (query.to(tl.float32) * scale).to(tl.float32 if PRECISE else query.dtype)
    keys = tl.multiple_of(tl.load(key_addresses + batch).to(query_ptr.dtype) + (head // GROUP) * dim, ALIGN)
    values = tl.multiple_of(tl.load(value_addresses + batch).to(query_ptr.dtype) + (head // GROUP) * dim, ALIGN)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    seen = length - count + row + 1
    stop = tl.minimum(length, length - count + block * BLOCK_M + BLOCK_M)
    # What the first of these rows sees, all of them see.
    whole = tl.minimum(stop, length - count + block * BLOCK_M + 1) // BLOCK_N * BLOCK_N
    for token in tl.range(0, whole, BLOCK_N):
        at_once = token + tl.arange(0, BLOCK_N)
        best, total, sums = _attend(
            query, keys, values, at_once, seen, stop, token_stride, column, dim, best, total, sums, False, PRECISE
        )
    for token in tl.range(whole, stop, BLOCK_N):
        at_once = token + tl.arange(0, BLOCK_N)
        best, total, sums = _attend(
            query, keys, values, at_once, seen, stop, token_stride, column, dim, best, total, sums, True, PRECISE
        )
    out = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptr + at, out, mask=wanted)


@triton.jit
def store(
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    key_addresses: tl.tensor,
    value_addresses: tl.tensor,
    lengths: tl.tensor,
    width: tl.tensor,
    token_stride: tl.tensor,
    BLOCK: tl.constexpr,
):
    """The key and value of each sequence's last token into its last row; grid (batch)."""
    batch, column = tl.program_id(0), tl.arange(0, BLOCK)
    length = tl.load(lengths + batch)
    inside = column < tl.where(length > 0, width, 0)
    place = (length - 1).to(tl.int64) * token_stride + column
    keys = tl.load(key_addresses + batch).to(key_ptr.dtype)
    values = tl.load(value_addresses + batch).to(value_ptr.dtype)
    tl.store(keys + place, tl.load(key_ptr + batch * key_stride + column, mask=inside), mask=inside)
    tl.store(values + place, tl.load(value_ptr + batch * value_stride + column, mask=inside), mask=inside)
