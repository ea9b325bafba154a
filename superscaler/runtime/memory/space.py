"""The address ranges of a pool and everything that is done to them, under one lock.

This is the pool without its surface: vTensors, arenas and the background thread call it with indices of chunks.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

from superscaler.errors import OutOfMemory, UseAfterFree, VirtualMemoryError
from superscaler.runtime.memory.backend import Backend
from superscaler.runtime.memory.faults import FAULTS
from superscaler.runtime.memory.lock import PoolLock
from superscaler.runtime.memory.mapper import Mapper
from superscaler.runtime.memory.region import Region
from superscaler.runtime.memory.sizes import text_of
from superscaler.runtime.memory.stats import MapCounters
from superscaler.runtime.memory.store import Store
from superscaler.runtime.memory.table import Account, close_account, open_account

Reclaimer = Callable[[int], int]
POPULATE_BYTES = 32 << 20
TRIES = 100  # to be the first to take the memory that went back

_SPACES: weakref.WeakSet[AddressSpace] = weakref.WeakSet()


def _inherit() -> None:
    """A forked child has no part in its parent's pools: their files are the same, but not their books."""
    for space in list(_SPACES):
        if space.state == "open":
            space.state = "inherited"
        space.lock = PoolLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_inherit)


class AddressSpace:
    """Regions over one store. ``lazy``: what is let go of is unmapped and given back in the background.

    ``state``: "open", "closed", or "inherited" by a forked child. Only an open one touches its backend.
    """

    def __init__(self, backend: Backend, limit: int, *, lazy: bool, name: str) -> None:
        self.name = name
        self.lazy = lazy
        self.backend = backend
        self.chunk = backend.chunk
        self.store = Store(backend, limit)
        self.counters = MapCounters()
        self.lock = PoolLock()
        self.mapper = Mapper(self)
        self.regions: set[Region] = set()
        self.accounts: dict[str, Account] = {}
        self.state = "open"
        self.pid = os.getpid()
        if backend.name == "host":
            FAULTS.watch(self)
        self._reclaimers: list[weakref.WeakMethod[Reclaimer]] = []
        self._serial = 0
        _SPACES.add(self)

    def open_region(self, size: int, owner: str) -> tuple[Region, Any]:
        """A fresh region of ``size`` bytes rounded up to chunks, and the buffer over it that keeps it alive."""
        text_of(owner, f"pool {self.name!r}, owner")
        with self.lock:
            self.check_open(owner)
            account = self.accounts.get(owner)
            if account is None:
                account = self.accounts[owner] = open_account(self.name, owner)
            self._serial += 1
            region = Region(self.store, account, f"{owner}#{self._serial}", -(-size // self.chunk) * self.chunk)
            self.regions.add(region)
        buffer = self.backend.buffer(region.address, region.size)
        weakref.finalize(buffer, self._abandon, region).atexit = False
        return region, buffer

    def check_open(self, user: str) -> None:
        """Raise :class:`UseAfterFree` for a closed pool, or one that a forked child has inherited."""
        if self.state == "inherited":
            raise UseAfterFree(
                f"{user}: pool {self.name!r} belongs to process {self.pid}",
                "a forked child has no part in it",
                hint="a pool of its own, opened by the child",
            )
        if self.state != "open":
            raise UseAfterFree(f"{user}: pool {self.name!r} is closed", hint="keep the pool open while it is used")

    def map_prefix(self, region: Region, used: int) -> None:
        """Have the first ``used`` chunks mapped, now, and mark them as in use."""
        if used <= region.prefix:
            region.used = used
            return
        begin = time.perf_counter()
        self.with_room(used - region.prefix, lambda: self._grow(region, used))
        self.counters.mapped_sync(time.perf_counter() - begin)

    def _grow(self, region: Region, used: int) -> None:
        self.check_open(region.name)
        if used > region.prefix:
            region.map(region.prefix, used)
            region.prefix = used
        region.used = used

    def map_at(self, region: Region, lo: int, hi: int) -> None:
        """Map fresh chunks at indices ``[lo, hi)`` now, wherever in the region."""
        begin = time.perf_counter()
        self.with_room(hi - lo, lambda: region.map(lo, hi))
        self.counters.mapped_sync(time.perf_counter() - begin)

    def map_ahead(self, region: Region, prefix: int) -> None:
        """As far as there is room without taking from anybody, map the first ``prefix`` chunks."""
        begin = time.perf_counter()
        with self.lock:
            if self.state != "open" or region.state != "open" or prefix <= region.prefix:
                return
            region.map(region.prefix, prefix)
            region.prefix = prefix
        self.counters.mapped_ahead(time.perf_counter() - begin)

    def cut_prefix(self, region: Region, used: int) -> None:
        """Unmap all but the first ``used`` chunks."""
        with self.lock:
            self.check_open(region.name)
            if used < region.prefix:
                self.unmap(region, used, region.prefix)
            region.prefix = region.used = used

    def unmap(self, region: Region, lo: int, hi: int) -> None:
        """Unmap mapped chunks, now or (a lazy pool) in the background; the lock is held."""
        if self.lazy:
            region.unmap_later(lo, hi)
            self.mapper.settle(region)
        else:
            region.unmap(lo, hi)

    def free(self, region: Region) -> None:
        """Unmap everything; the addresses go when no view is left."""
        with self.lock:
            self.check_open(region.name)
            for lo, count in region.spans():
                self.unmap(region, lo, lo + count)
            region.prefix = region.used = 0
            region.state = "freed"

    def share(self, target: Region, at: int, source: Region, lo: int, hi: int) -> None:
        """Map the source's chunks ``[lo, hi)`` at ``at`` of the target as well, read-only on both sides."""
        with self.lock:
            self.check_open(target.name)
            _check_used(source, hi)
            self._clear_from(target, at)
            protected = source.protect(lo, hi)
            try:
                self._adopt(target, at, [source.chunks[index] for index in range(lo, hi)], source.account)
            except BaseException:
                source.unprotect(protected)
                raise

    def share_held(self, target: Region, at: int, chunks: list[int], account: Account) -> None:
        """Map chunks that ``account`` refers to at ``at`` of the target, read-only."""
        with self.lock:
            self.check_open(target.name)
            self._clear_from(target, at)
            self._adopt(target, at, chunks, account)

    def _clear_from(self, region: Region, at: int) -> None:
        if region.prefix > at:
            region.unmap(at, region.prefix)
            region.prefix = at

    def _adopt(self, target: Region, at: int, chunks: list[int], account: Account) -> None:
        target.adopt(at, chunks, account)
        target.prefix = target.used = at + len(chunks)

    def populate(self, region: Region) -> bool:
        """Have all mapped chunks of a region backed by memory, a few at a time; whether the system could."""
        done = True
        most = max(1, POPULATE_BYTES // self.chunk)
        for lo, count in region.spans():
            for first in range(lo, lo + count, most):
                last = min(first + most, lo + count)
                with self.lock:
                    self.check_open(region.name)
                    if all(index in region.chunks for index in range(first, last)):
                        size = (last - first) * self.chunk
                        done &= self.backend.populate(region.address + first * self.chunk, size)
        return done

    def hold(self, region: Region, lo: int, hi: int) -> list[int]:
        """One more reference, of the same owner, to each of the chunks ``[lo, hi)``, which become read-only."""
        with self.lock:
            self.check_open(region.name)
            _check_used(region, hi)
            region.protect(lo, hi)
            chunks = [region.chunks[index] for index in range(lo, hi)]
            self.store.share(chunks, region.account, region.account)
            return chunks

    def drop(self, account: Account, chunks: list[int]) -> None:
        """``account`` refers to these chunks no more."""
        with self.lock:
            self._drop(account, chunks)

    def drop_later(self, account: Account, chunks: list[int]) -> None:
        """:meth:`drop`, from a finalizer."""
        self.lock.later(lambda: self._drop(account, chunks))

    def _drop(self, account: Account, chunks: list[int]) -> None:
        # A closed pool has given everything back: its chunks' numbers, and its file's, may be somebody else's now.
        if self.state == "open":
            self.store.drop(chunks, account, None)

    def make_writable(self, region: Region, lo: int, hi: int) -> None:
        """Copy what is shared in ``[lo, hi)``, lift the protection of the rest."""

        def make_writable() -> None:
            self.check_open(region.name)
            region.make_writable(lo, hi)

        self.with_room(region.count_shared(lo, hi), make_writable)

    def with_room(self, chunks: int, act: Callable[[], None]) -> None:
        """Do it under the lock; where memory is short, again after room for so many chunks was made.

        Others may be faster in taking it, so it is tried again for as long as memory goes back.
        """
        for attempt in range(TRIES):
            try:
                with self.lock:
                    act()
                return
            except OutOfMemory as error:
                returned = self.store.returned
                # Where the system has less than the budget allows, so much has to go back, whatever the budget says.
                wanted = returned + chunks if isinstance(error.__cause__, OSError) else 0
                self.make_room(chunks, wanted)
                # What others gave back between our failing and our counting is room, too, though it counts for nothing.
                if attempt and self.store.returned == returned and self._missing(chunks, wanted) > 0:
                    raise
        with self.lock:
            act()

    def make_room(self, chunks: int, returned: int = 0) -> None:
        """Try to make room for so many chunks: what waits to go back, what was mapped ahead, what owners can spare.

        ``returned``: go on until so many have ever gone back to the system.
        """
        self.settle()
        if self._missing(chunks, returned) > 0:
            self._take_back_ahead()
        for known in list(self._reclaimers):
            missing, reclaim = self._missing(chunks, returned), known()
            if missing > 0 and reclaim is not None:
                reclaim(missing * self.chunk)

    def _missing(self, chunks: int, returned: int) -> int:
        return max(self.store.committed + chunks - self.store.limit, returned - self.store.returned)

    def _take_back_ahead(self) -> None:
        with self.lock:
            for region in self.regions:
                with contextlib.suppress(VirtualMemoryError):
                    self._clear_from(region, region.used)

    def add_reclaimer(self, reclaim: Reclaimer) -> None:
        """``reclaim(nbytes)`` is called, without the lock, when memory is short; it gives back what it can spare.

        It must be a method, and is forgotten when its object dies.
        """
        self._reclaimers.append(weakref.WeakMethod(reclaim))

    def remove_reclaimer(self, reclaim: Reclaimer) -> None:
        """The reclaimer is asked no more."""
        self._reclaimers = [known for known in self._reclaimers if known() not in (None, reclaim)]

    def settle(self) -> None:
        """Give back all that is waiting: stale mappings, and what the system refused to take before."""
        with self.lock:
            if self.state != "open":
                return
            for region in [region for region in self.regions if region.stale]:
                with contextlib.suppress(VirtualMemoryError):
                    region.settle()
            self.store.give_back()

    def close(self) -> None:
        """Unmap everything, and close the backend."""
        if self.state != "open":
            return
        self.mapper.stop()
        with self.lock:
            for region in list(self.regions):
                self._empty(region)
            self.store.give_back()
            self.state = "closed"
            self.backend.close()
            for account in self.accounts.values():
                close_account(account)

    def _empty(self, region: Region) -> None:
        region.settle()
        for lo, count in region.spans():
            region.unmap(lo, lo + count)
        region.prefix = region.used = 0
        region.state = "freed"

    def _abandon(self, region: Region) -> None:
        # Runs wherever the last reference to a buffer dies: in a collection, on any thread, whoever holds the lock.
        if self.state != "inherited":
            self.lock.later(lambda: self._release(region))

    def _release(self, region: Region) -> None:
        region.release()
        self.regions.discard(region)


def _check_used(region: Region, hi: int) -> None:
    """Under the lock: its owner may have trimmed it since the caller looked."""
    if region.used < hi:
        raise VirtualMemoryError(
            f"{region.name}: its first {hi:,} chunks are not all in use", f"{region.used:,} are", hint="extend first"
        )
