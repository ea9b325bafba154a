"""The lock of a pool, which finalizers may use.

Python may collect garbage anywhere, also inside a pool's own bookkeeping, so the finalizer of a range must neither wait
for the pool's lock nor enter it twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class PoolLock:
    """A lock, and a queue of deeds of finalizers that whoever lets go of the lock does.

    ``later`` never waits: it appends, then empties the queue if the lock is free. If it is not, its holder looks into
    the queue after having let go, so nothing is forgotten and nobody waits inside a finalizer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deeds: deque[Callable[[], None]] = deque()

    def later(self, deed: Callable[[], None]) -> None:
        self._deeds.append(deed)
        self._drain()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        if self._deeds:
            self._drain()

    def _drain(self) -> None:
        while self._deeds and self._lock.acquire(blocking=False):
            try:
                refused = self._do_all()
            finally:
                self._lock.release()
            if refused:
                # What the system refuses waits for the next use of the lock.
                self._deeds.extend(refused)
                return

    def _do_all(self) -> list[Callable[[], None]]:
        refused: list[Callable[[], None]] = []
        while self._deeds:
            deed = self._deeds.popleft()
            try:
                deed()
            except OSError:
                refused.append(deed)
        return refused
