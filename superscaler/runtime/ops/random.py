"""Counter-based randomness: every number is a function of (seed, step, op, global index) and of nothing else.

So a part draws what it has in the whole, whatever the split, the schedule or the recomputation. Row and column indices
are hashed on their own (SplitMix64: Steele, Lea and Flood 2014), their sum by a 32-bit finaliser with two
multiplications; only the latter touches every element.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from superscaler.ir.region import Region, Span
from superscaler.runtime.ops.creation import device as creation_device

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _splitmix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def stream(key: int, seed: tuple[int, int]) -> int:
    """64 bits that identify one op in one step of one run."""
    return _splitmix(_splitmix(_splitmix(seed[0]) ^ seed[1]) ^ key)


@lru_cache(maxsize=1024)
def _indices(span: Span, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in span or ((0, 0),)])


def _xorshift64(x: Tensor, bits: int) -> Tensor:
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))  # torch shifts int64 arithmetically


def _mix64(x: Tensor) -> Tensor:
    x = _xorshift64(x + _signed(_GOLDEN, 64), 30) * _signed(0xBF58476D1CE4E5B9, 64)
    return _xorshift64(_xorshift64(x, 27) * _signed(0x94D049BB133111EB, 64), 31)


def _xorshift32_(x: Tensor, bits: int) -> Tensor:
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def bits(region: Region, key: int, seed: tuple[int, int], device: torch.device) -> Tensor:
    """Uniform int32 numbers, one per element of the region of a tensor."""
    state = torch.full((), _signed(stream(key, seed), 64), dtype=torch.int64, device=device)
    rows, column = region[:-1], region[-1] if region else Span.full(1)
    for span in rows:
        state = _mix64(state.unsqueeze(-1) ^ _mix64(_indices(span, device)))
    salt = _splitmix(stream(key, seed))  # the columns' own
    columns = _mix64(_indices(column, device) ^ _signed(salt, 64))
    x = _mix64(state).to(torch.int32).unsqueeze(-1) + columns.to(torch.int32)
    x = _xorshift32_(x, 16).mul_(_signed(0x7FEB352D, 32))
    x = _xorshift32_(x, 15).mul_(_signed(0x846CA68B, 32))
    return x if region else x.squeeze(-1)


def keep_mask(region: Region, p: float, key: int, seed: tuple[int, int], device: torch.device) -> Tensor:
    """True with probability 1 − p, independently for every element."""
    threshold = round(p * (1 << 32)) - (1 << 31)
    if threshold >= 1 << 31:
        return torch.zeros(region.shape, dtype=torch.bool, device=device)
    return bits(region, key, seed, device) >= threshold


def dropout(x: Tensor, p: float, key: int, seed: tuple[int, int], region: Region) -> Tensor:
    """Each element is zero with probability p, else divided by 1 − p (Srivastava et al. 2014)."""
    if p >= 1:
        return torch.zeros_like(x)
    keep = keep_mask(region, p, key, seed, x.device)
    return torch.where(keep, x * (1 / (1 - p)), 0)


def uniform(shape: Sequence[int], dtype: torch.dtype, key: int, seed: tuple[int, int], region: Region) -> Tensor:
    """Uniform numbers in [0, 1), with 24 random bits (32 in float64)."""
    drawn = bits(region, key, seed, creation_device())
    if dtype == torch.float64:
        return (drawn.double() + 2.0**31) * 2.0**-32
    return ((drawn >> 8).float() + 2.0**23).mul_(2.0**-24).to(dtype)


def normal(shape: Sequence[int], dtype: torch.dtype, key: int, seed: tuple[int, int], region: Region) -> Tensor:
    """Standard normal numbers (Box and Muller 1958)."""
    one, two = (bits(region, k, seed, creation_device()).double() for k in (key, _splitmix(key)))
    radius = torch.sqrt(-2 * torch.log((one + (2.0**31 + 0.5)) * 2.0**-32))
    return (radius * torch.cos(two * (2 * torch.pi * 2.0**-32))).to(dtype)
