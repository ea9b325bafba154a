"""When each item of a run began and ended: on a CPU by the host's clock, on a GPU by events on its stream."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Takes down the start and end of numbered items."""

    def restart(self) -> None:
        """A run begins."""
        ...

    def begin(self, number: int) -> None:
        """An item begins."""
        ...

    def end(self, number: int) -> None:
        """An item has ended; the last call counts."""
        ...

    def times(self) -> list[tuple[int, int]]:
        """Start and end per item, in nanoseconds of this machine's monotonic clock."""
        ...


class HostClock:
    """Work is done when the call returns."""

    def __init__(self, items: int) -> None:
        self.starts = [0] * items
        self.ends = [0] * items

    def restart(self) -> None:
        pass

    def begin(self, number: int) -> None:
        self.starts[number] = perf_counter_ns()

    def end(self, number: int) -> None:
        self.ends[number] = perf_counter_ns()

    def times(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, self.ends, strict=True))


class DeviceClock:
    """Work is done when the stream gets there."""

    def __init__(self, items: int, device: torch.device) -> None:
        self.device = device
        self.starts: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(items)]
        self.ends: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(items)]
        self.zero: Any = torch.cuda.Event(enable_timing=True)
        self.host = 0

    def restart(self) -> None:
        self.host = perf_counter_ns()
        self.zero.record()

    def begin(self, number: int) -> None:
        self.starts[number].record()

    def end(self, number: int) -> None:
        self.ends[number].record()

    def times(self) -> list[tuple[int, int]]:
        if not self.host:
            return [(0, 0)] * len(self.starts)
        torch.cuda.synchronize(self.device)

        def since(event: Any) -> int:
            return self.host + int(self.zero.elapsed_time(event) * 1e6)

        return [(since(a), since(b)) for a, b in zip(self.starts, self.ends, strict=True)]


def clock(items: int, device: torch.device) -> Clock:
    """The clock for a device."""
    return DeviceClock(items, device) if device.type == "cuda" else HostClock(items)
