"""Measuring memory: how much a run allocates at its worst, beyond what was there before."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """``bytes``: known when the measurement has ended."""

    bytes: int = 0


@contextmanager
def peak(device: torch.device) -> Generator[Peak]:
    """The most bytes that were allocated at a time inside, by the profiler on CPUs, by the allocator on GPUs."""
    found = Peak()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield found
    found.bytes = _highest(profiled)


def _highest(profiled: Any) -> int:
    results: Any = profiled.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    total = most = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        total += change
        most = max(most, total)
    return most
