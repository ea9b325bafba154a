"""Measuring memory: how much a run allocates at its worst, beyond what was there before."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

_SETTLING = 1.0  # seconds that another thread may take to let go of a tensor


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
    _under_way.append(found)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            yield found
    finally:
        _under_way.pop()
    found.bytes = _highest(profiled)


_under_way: list[Peak] = []
Holders = Sequence[tuple[Tensor, int]]


def holders(*tensors: Tensor) -> Holders:
    """While memory is measured: the tensors with the number of those who hold their memory."""
    return [(tensor, _held_by(tensor)) for tensor in tensors] if _under_way else ()


def settle(before: Holders) -> None:
    """Wait until no more hold the tensors' memory than did before.

    The profiler sees what this thread frees only. What a communication's own thread lets go last would count for ever.
    """
    end = time.monotonic() + _SETTLING
    while any(_held_by(tensor) > count for tensor, count in before) and time.monotonic() < end:
        time.sleep(0)


def _held_by(tensor: Tensor) -> int:
    """References to the tensor, and of tensors to its memory."""
    core: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    shared: Any = getattr(tensor.untyped_storage(), "_cdata")  # noqa: B009 (it is private)
    own: Any = getattr(tensor, "_use_count", None)
    return core._storage_Use_Count(shared) + (own() if own is not None else 0)


def _highest(profiled: Any) -> int:
    results: Any = profiled.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    total = most = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        total += change
        most = max(most, total)
    return most
