"""A plain arena: one preallocated block of bytes, and views of it at the plan's offsets."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor


class Storage(Protocol):
    """Where the values of a plan live: bytes at offsets."""

    def view(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor over the bytes at ``offset``."""
        ...


class Block:
    """``size`` bytes on a device, allocated at once."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)

    @property
    def size(self) -> int:
        return self.bytes.numel()

    def view(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor over the bytes at ``offset``."""
        length = prod(shape) * dtype.itemsize
        return self.bytes[offset : offset + length].view(dtype).view(tuple(shape))
