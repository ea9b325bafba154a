"""The background thread of a pool: maps ahead of need, and gives back what a lazy pool was told to free.

It cannot deadlock with the interpreter lock: it waits only in ``SimpleQueue.get`` and for the pool's lock, both of
which let go of the interpreter lock while they wait, and nothing waits for it except :meth:`Mapper.stop`. It holds the
pool's lock for a few chunks at a time, so that a caller never waits behind a large release.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import Protocol

from superscaler.errors import VirtualMemoryError
from superscaler.runtime.memory.lock import PoolLock
from superscaler.runtime.memory.region import Region

BATCH_BYTES = 8 << 20
PAUSE = 50e-6

# A region and how many chunks of it to have mapped, or None to settle it; None alone ends the thread.
Request = tuple[Region, int | None] | None


class Mappable(Protocol):
    """What the thread needs of a pool's address space."""

    lock: PoolLock
    chunk: int

    def map_ahead(self, region: Region, prefix: int) -> None: ...


class Mapper:
    """Started by the first request; ends with the pool."""

    def __init__(self, space: Mappable) -> None:
        self._queue: SimpleQueue[Request] = SimpleQueue()
        self._thread = threading.Thread(target=work, args=(weakref.ref(space), self._queue), name="mapper", daemon=True)
        # Whoever takes it from here may start the thread: callers ask without a lock, and a finalizer inside another.
        self._unstarted = [self._thread]
        weakref.finalize(space, self._queue.put, None).atexit = False

    def extend_ahead(self, region: Region, prefix: int) -> None:
        """Map the region's first ``prefix`` chunks when there is time."""
        self._ask((region, prefix))

    def settle(self, region: Region) -> None:
        """Unmap and give back what is stale in the region when there is time."""
        self._ask((region, None))

    def stop(self) -> None:
        """End the thread, after the request it is working on; it does not start any more."""
        with contextlib.suppress(IndexError):
            self._unstarted.pop()
        self._queue.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _ask(self, request: Request) -> None:
        self._queue.put(request)
        try:
            thread = self._unstarted.pop()
        except IndexError:
            return
        thread.start()


def work(space: weakref.ref[Mappable], queue: SimpleQueue[Request]) -> None:
    """The thread: all that is asked for at one moment is one batch."""
    while (batch := next_batch(queue)) is not None:
        owner = space()
        if owner is None:
            return
        for region, prefix in batch.items():
            # A request that cannot be met is met later, synchronously, by whoever needs it.
            with contextlib.suppress(VirtualMemoryError):
                if prefix:
                    owner.map_ahead(region, prefix)
                settle(owner, region)
        del owner, batch


def next_batch(queue: SimpleQueue[Request]) -> dict[Region, int] | None:
    """Wait for a request, then take all there are: the furthest prefix asked for of each region."""
    batch: dict[Region, int] = {}
    request = queue.get()
    while request is not None:
        region, prefix = request
        batch[region] = max(batch.get(region, 0), prefix or 0)
        try:
            request = queue.get_nowait()
        except Empty:
            return batch
    return None


def settle(space: Mappable, region: Region) -> None:
    """Settle a region a few chunks at a time, letting others have the lock in between."""
    most = max(1, BATCH_BYTES // space.chunk)
    while region.stale:
        with space.lock:
            region.settle(most)
        time.sleep(PAUSE)
