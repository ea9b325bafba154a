"""Where rows of ``gpu.py`` run: a device, how long, and how their times are taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from superscaler.runtime.memory import Pool

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Machine:
    """``quick``: tiny sizes, so that the rows themselves can be tried where there is no GPU. ``deadline``: by
    ``time.monotonic()``, when the row will be stopped."""

    device: torch.device
    quick: bool
    deadline: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What caches are of. (Triton's interpreter computes products of bfloat16 in float32.)"""
        return torch.bfloat16 if self.cuda else torch.float32

    def size(self, full: int, quick: int) -> int:
        """A size: as it should be, or as small as will do."""
        return quick if self.quick else full

    def pool(self, budget: int, chunk: int | None = None, **options: Any) -> Pool:
        """A pool on the device; its chunks are what the device has as its smallest, unless told."""
        if self.cuda:
            return Pool("cuda", budget, chunk or 2 * MIB, **options)
        return Pool("host", budget, chunk or 64 * KIB, **options)

    def free(self) -> int:
        """Bytes of memory that are free."""
        return torch.cuda.mem_get_info(self.device)[0] if self.cuda else 2 * GIB

    def left(self) -> float:
        """Seconds until the row is stopped."""
        return self.deadline - time.monotonic()

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, act: Callable[[], object]) -> float:
        """Of one call, with all that it starts."""
        self.synchronize()
        begin = time.perf_counter()
        act()
        self.synchronize()
        return time.perf_counter() - begin

    def typical(self, act: Callable[[], object], *, least: float = 0.02) -> float:
        """Seconds of one call among many in a row: the median of three such rows of ``least`` seconds."""
        once = min(self.seconds(act), self.seconds(act))
        times = 1 if self.quick else max(1, min(200, int(least / max(once, 1e-6))))

        def many() -> None:
            for _ in range(times):
                act()

        return statistics.median(self.seconds(many) for _ in range(3)) / times

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)
