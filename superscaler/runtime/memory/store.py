"""The physical side of a pool: its budget, who refers to which chunk, and what is still to be given back.

A chunk that only one range refers to is not written down anywhere but there; ``_holders`` knows the shared ones. All
methods are called with the pool's lock held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from superscaler.errors import OutOfMemory
from superscaler.runtime.memory.backend import Backend, Run, runs_of
from superscaler.runtime.memory.chunks import ChunkNumbers, Window
from superscaler.runtime.memory.table import Account


class Store:
    """Chunks under a budget of ``limit`` chunks. ``committed`` counts those in use or not yet given back,
    ``returned`` those that ever went back to the system."""

    def __init__(self, backend: Backend, limit: int) -> None:
        self.backend = backend
        self.numbers = ChunkNumbers(backend.capacity, backend.alignment)
        self.limit = limit
        self.committed = 0
        self.peak = 0
        self.returned = 0
        self.unreturned: list[Run] = []
        self._holders: dict[int, list[Account]] = {}

    @property
    def shared(self) -> int:
        """How many chunks have more than one holder."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """How many chunks nobody holds, but the system has not taken back yet."""
        return sum(count for _, count in self.unreturned)

    def is_shared(self, chunk: int) -> bool:
        return chunk in self._holders

    def commit(self, count: int, owner: str) -> None:
        """Charge so many chunks to the budget, or raise :class:`OutOfMemory` naming the owner that asked."""
        if self.committed + count > self.limit:
            self.give_back()
        committed = self.committed + count
        if committed > self.limit:
            chunk = self.backend.chunk
            raise OutOfMemory(
                f"{owner}: the pool has no {count * chunk:,} bytes left",
                f"{self.committed * chunk:,} of its {self.limit * chunk:,} bytes are in use",
                hint="a larger budget, or free what is no longer needed",
            )
        self.committed = committed
        self.peak = max(self.peak, committed)

    def uncommit(self, count: int) -> None:
        self.committed -= count

    def share(self, chunks: Iterable[int], source: Account, target: Account) -> None:
        """``target`` refers to these chunks, too; ``source`` is the account of a range that does already."""
        for chunk in chunks:
            holders = self._holders.get(chunk)
            if holders is None:
                holders = self._holders[chunk] = [source]
                source.add_shared(self.backend.chunk)
            holders.append(target)
            target.add_shared(self.backend.chunk)

    def drop(self, chunks: list[int], account: Account, home: Window | None) -> None:
        """``account`` refers to these chunks no more; those that nobody refers to go back to the system.

        ``home`` is the window of the range that lets go of them.
        """
        if self._holders:
            chunks = [chunk for chunk in chunks if not self._still_held(chunk, account, home)]
        chunks.sort()
        for run in runs_of(chunks):
            self._discard(run, home)

    def _still_held(self, chunk: int, account: Account, home: Window | None) -> bool:
        holders = self._holders.get(chunk)
        if holders is None:
            return False
        holders.remove(account)
        account.add_shared(-self.backend.chunk)
        if home is not None:
            self.numbers.leave(home, chunk)
        if len(holders) == 1:
            del self._holders[chunk]
            holders[0].add_shared(-self.backend.chunk)
        return True

    def give_back(self) -> None:
        """Try again what the system refused to take back."""
        retry, self.unreturned = self.unreturned, []
        for run in retry:
            self._discard(run, None)

    def _discard(self, run: Run, home: Window | None) -> None:
        first, count = run
        try:
            self.backend.discard(run)
        except OSError:
            # It stays charged, and its number must not be used again before its content is gone.
            self.unreturned.append(run)
            if home is not None:
                for chunk in range(first, first + count):
                    self.numbers.leave(home, chunk)
            return
        self.committed -= count
        self.returned += count
        self.numbers.freed(range(first, first + count))


def chunks_in(runs: Sequence[Run]) -> list[int]:
    """The chunks of runs, in their order."""
    return [chunk for first, count in runs for chunk in range(first, first + count)]
