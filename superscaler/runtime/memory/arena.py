"""An arena: a plan's values at the offsets that its memory schedule gave them, mapped by their lifetimes.

Offsets are fixed when the plan is made, so a value is found by address arithmetic. A chunk is needed while a value
that touches it is alive. A chunk that no live value touches is *idle*: it stays mapped, because the next step will want
it at the same address, until somebody else in the pool runs out of memory (activations and KV under one budget), or
until ``trim``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from superscaler.errors import UsageError, UseAfterFree, VirtualMemoryError
from superscaler.runtime.memory.backend import runs_of
from superscaler.runtime.memory.pool import Pool
from superscaler.runtime.memory.region import Region
from superscaler.runtime.memory.sizes import bytes_of, of_kind, size_of, text_of

if TYPE_CHECKING:
    import torch


class Arena:
    """``size`` bytes of addresses in ``pool``.

    ``keep``: idle chunks stay mapped until the pool is short of memory; otherwise they go back once they are idle.
    Offsets and sizes are bytes. Raises :class:`UsageError` for an argument of another kind.
    """

    def __init__(self, pool: Pool, size: int, *, owner: str = "arena", keep: bool = True) -> None:
        of_kind(pool, Pool, "an arena's pool", "superscaler.runtime.memory.Pool(...)")
        size = bytes_of(size, text_of(owner, "an arena's owner"))
        if size < 0:
            raise UsageError(f"{owner}: an arena of {size} bytes", hint="a number of bytes that is not negative")
        self.pool = pool
        self.size = size
        self.keep = keep
        region, buffer = pool.space.open_region(max(size, 1), owner)
        self._region: Region = region
        self._buffer: Any = buffer
        self._uses = [0] * region.count
        self._peak = 0
        self._in_use = 0
        self._most_in_use = 0
        pool.add_reclaimer(self.reclaim)

    @property
    def address(self) -> int:
        """Where offset 0 is."""
        return self._region.address

    @property
    def mapped(self) -> int:
        """Bytes mapped now: chunks of live values, and idle ones."""
        return len(self._region.chunks) * self.pool.chunk

    @property
    def in_use(self) -> int:
        """Bytes of the chunks that live values touch."""
        return self._in_use * self.pool.chunk

    @property
    def peak(self) -> int:
        """The end of the highest byte that a value ever had: what the memory schedule predicts as its peak."""
        return self._peak

    @property
    def peak_in_use(self) -> int:
        """The most ``in_use`` ever was."""
        return self._most_in_use * self.pool.chunk

    def tensor(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """:meth:`acquire` the bytes of a value at ``offset`` and return a tensor over them, whatever they contain.

        Raises :class:`OutOfMemory`, and as :meth:`view`.
        """
        self.acquire(offset, size_of(shape, dtype, self._region.name))
        return self.view(offset, shape, dtype)

    def view(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor over bytes that are mapped; it may be kept and used again whenever they are acquired.

        Raises :class:`VirtualMemoryError` where they are not mapped or outside of the arena, :class:`UsageError` for an
        offset that the size of an element does not divide.
        """
        nbytes = size_of(shape, dtype, self._region.name)
        lo, hi = self._indices(offset, nbytes)
        if offset % dtype.itemsize:
            raise UsageError(
                f"{self._region.name}: offset {offset} of a tensor of {dtype}",
                "it is not aligned",
                hint="an offset that the size of an element divides",
            )
        if any(index not in self._region.chunks for index in range(lo, hi)):
            raise VirtualMemoryError(
                f"{self._region.name}: a view beyond what is mapped",
                f"bytes [{offset:,}, {offset + nbytes:,}) of shape {tuple(shape)}, {dtype}",
                hint="acquire them first",
            )
        return self.pool.backend.tensor(self._buffer, offset, shape, dtype)

    def acquire(self, offset: int, nbytes: int) -> None:
        """A value's life begins: its chunks are mapped. Raises :class:`OutOfMemory` and changes nothing."""
        lo, hi = self._indices(offset, nbytes)
        uses = self._uses
        # Another thread may be about to reclaim what was idle until now.
        with self.pool.space.lock:
            for index in range(lo, hi):
                uses[index] += 1
                self._in_use += uses[index] == 1
            missing = [index for index in range(lo, hi) if index not in self._region.chunks]
        if missing:
            self._map(missing, lo, hi)
        self._most_in_use = max(self._most_in_use, self._in_use)
        self._peak = max(self._peak, offset + nbytes)

    def _map(self, missing: list[int], lo: int, hi: int) -> None:
        # The uses are counted already, so that nothing of this is reclaimed to make room for the rest of it.
        try:
            for first, count in runs_of(missing):
                self.pool.space.map_at(self._region, first, first + count)
        except BaseException:
            self._end(lo, hi)
            raise

    def populate(self) -> bool:
        """Have what is mapped backed by memory now, in huge pages where the system can; whether it could."""
        self._open()
        return self.pool.space.populate(self._region)

    def release(self, offset: int, nbytes: int) -> None:
        """A value's life ends: chunks that no other value touches are idle."""
        lo, hi = self._indices(offset, nbytes)
        if any(not self._uses[index] for index in range(lo, hi)):
            raise UseAfterFree(
                f"{self._region.name}: bytes [{offset:,}, {offset + nbytes:,}) are released already",
                hint="use it before it is released",
            )
        self._end(lo, hi)
        if not self.keep:
            self._unmap_idle(range(lo, hi))

    def _end(self, lo: int, hi: int) -> None:
        uses = self._uses
        for index in range(lo, hi):
            uses[index] -= 1
            self._in_use -= not uses[index]

    def reclaim(self, nbytes: int) -> int:
        """Give back at least so many bytes of idle chunks, as far as there are; returns how many."""
        nbytes = bytes_of(nbytes, self._region.name)
        self.pool.space.check_open(self._region.name)
        idle = [index for index in sorted(self._region.chunks, reverse=True) if not self._uses[index]]
        return self._unmap_idle(idle[: -(-nbytes // self.pool.chunk)])

    def trim(self) -> int:
        """Give back all idle chunks; returns how many bytes."""
        self._open()
        return self._unmap_idle(list(self._region.chunks))

    def _unmap_idle(self, indices: Sequence[int]) -> int:
        with self.pool.space.lock:
            idle = sorted(i for i in indices if not self._uses[i] and i in self._region.chunks)
            for lo, count in runs_of(idle):
                self.pool.space.unmap(self._region, lo, lo + count)
        return len(idle) * self.pool.chunk

    def free(self) -> None:
        """Give everything back; views meet the guard."""
        self._open()
        self.pool.remove_reclaimer(self.reclaim)
        self.pool.space.free(self._region)
        self._buffer = None

    def _open(self) -> None:
        self.pool.space.check_open(self._region.name)
        if self._buffer is None or self._region.state != "open":
            raise UseAfterFree(f"{self._region.name} was freed", hint="another arena")

    def _indices(self, offset: int, nbytes: int) -> tuple[int, int]:
        self._open()
        for number in (offset, nbytes):
            bytes_of(number, self._region.name)
        if min(offset, nbytes) < 0 or offset + nbytes > self.size:
            raise VirtualMemoryError(
                f"{self._region.name}: bytes [{offset:,}, {offset + nbytes:,}) are outside of the arena",
                f"it has {self.size:,}",
                hint="a larger arena",
            )
        chunk = self.pool.chunk
        return offset // chunk, -(-(offset + nbytes) // chunk) if nbytes else offset // chunk
