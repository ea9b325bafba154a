"""What a pool reports about itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class MapCounters:
    """How memory came to be mapped: by the caller, who waited for it, or ahead of need by the background thread."""

    sync_maps: int = 0
    sync_seconds: float = 0.0
    sync_longest: float = 0.0
    ahead_maps: int = 0
    ahead_seconds: float = 0.0

    def mapped_sync(self, seconds: float) -> None:
        self.sync_maps += 1
        self.sync_seconds += seconds
        if seconds > self.sync_longest:
            self.sync_longest = seconds

    def mapped_ahead(self, seconds: float) -> None:
        self.ahead_maps += 1
        self.ahead_seconds += seconds


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool's figures at one moment; sizes in bytes, times in seconds.

    ``reserved``: addresses. ``mapped``: the mapped part of them; a chunk counts once for each place it is mapped at.
    ``committed``: chunks charged to the budget, each once, whether a page of them was touched yet or not; ``peak`` is
    the most that ever was. ``physical``: what the system itself (the memfd's blocks, or the driver) says is in use.
    ``shared``: chunks with more than one holder, each once. ``waiting``: freed, but not yet taken back by the system.
    """

    budget: int
    chunk: int
    reserved: int
    mapped: int
    committed: int
    physical: int
    shared: int
    peak: int
    waiting: int
    sync_maps: int
    sync_seconds: float
    sync_longest: float
    ahead_maps: int
    ahead_seconds: float
    calls: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def system_calls(self) -> int:
        """All system (or driver) calls so far; ``calls`` has them by name."""
        return sum(self.calls.values())
