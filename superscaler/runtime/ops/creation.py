"""Tensors made from nothing, on the worker's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_device = torch.device("cpu")


def set_device(device: torch.device | str) -> None:
    """The device on which ops without inputs make their tensors in this process."""
    global _device
    _device = torch.device(device)


def device() -> torch.device:
    """See :func:`set_device`."""
    return _device


def full(shape: Sequence[int], value: float, dtype: torch.dtype) -> Tensor:
    """A tensor of one value."""
    return torch.full(shape, value, dtype=dtype, device=_device)


def arange(start: float, step: float, dtype: torch.dtype, first: int | None, count: int) -> Tensor:
    """Elements ``first : first + count`` of ``start, start + step, …`` (None: from the first)."""
    low = first or 0
    index = torch.arange(low, low + count, device=_device)
    if dtype.is_floating_point:
        return index.double().mul_(step).add_(start).to(dtype)
    return index.mul_(int(step)).add_(int(start)).to(dtype)
