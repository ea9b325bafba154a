"""An address range and the chunks mapped in it: the mechanism under :class:`VTensor` and :class:`Arena`.

Every method is called with the pool's lock held, either does all it is asked or raises and leaves the range as it was,
and keeps three things in step: what is mapped, who refers to which chunk, and the owner's counters.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Sequence

from superscaler.errors import OutOfMemory, VirtualMemoryError
from superscaler.runtime.memory.backend import Run, runs_of
from superscaler.runtime.memory.store import Store, chunks_in
from superscaler.runtime.memory.table import Account


class Region:
    """``count`` places for chunks from ``address`` on.

    ``chunks`` maps an index to its chunk's number; ``readonly`` holds the indices that may not be written. ``stale``
    are chunks that their owner has let go of but which are mapped still: unmapped later (a lazy pool), or because the
    system refused. They are settled before their indices are used again. Of a vTensor, the first ``prefix`` chunks are
    mapped and the first ``used`` of them in use (an arena does without either).
    """

    __slots__ = (
        "account", "address", "chunks", "count", "name", "prefix", "readonly",
        "size", "stale", "state", "store", "used", "window",
    )  # fmt: skip

    def __init__(self, store: Store, account: Account, name: str, size: int) -> None:
        self.store = store
        self.account = account
        self.name = name
        self.count = size // store.backend.chunk
        self.size = size
        self.window = store.numbers.window(self.count)
        try:
            self.address = store.backend.reserve(size, self.window.first)
        except BaseException:
            store.numbers.retire(self.window)
            raise
        self.chunks: dict[int, int] = {}
        self.readonly: set[int] = set()
        self.stale: dict[int, int] = {}
        self.prefix = self.used = 0
        self.state = "open"
        account.add_reserved(size)

    def map(self, lo: int, hi: int) -> None:
        """Fresh chunks (zeros) at ``[lo, hi)``, where nothing is mapped: one system call per run."""
        if self.stale:
            self.settle()
        count, store = hi - lo, self.store
        store.commit(count, self.name)
        try:
            runs = store.numbers.take(self.window, range(lo, hi))
        except OutOfMemory:
            store.uncommit(count)
            raise
        self._place(lo, hi, runs, writable=True)
        if count == 1:
            self.chunks[lo] = runs[0][0]
        else:
            self.chunks.update(zip(range(lo, hi), chunks_in(runs), strict=True))
        self.account.add_mapped(count * store.backend.chunk)

    def _place(self, lo: int, hi: int, runs: Sequence[Run], *, writable: bool) -> None:
        """Map chunks that we refer to already; where that fails, refer to them no more, or keep them as stale."""
        backend = self.store.backend
        try:
            backend.map(self.address + lo * backend.chunk, runs, writable=writable)
        except (OSError, OutOfMemory) as error:
            chunks = chunks_in(runs)
            if self._unmapped(lo, hi):
                self.store.drop(chunks, self.account, self.window)
            else:
                self.stale.update(zip(range(lo, hi), chunks, strict=True))
            raise _refused(self, "map", error) from error

    def _unmapped(self, lo: int, hi: int) -> bool:
        try:
            self._unmap_pages(lo, hi)
        except OSError:
            return False
        return True

    def _unmap_pages(self, lo: int, hi: int) -> None:
        chunk = self.store.backend.chunk
        self.store.backend.unmap(self.address + lo * chunk, (hi - lo) * chunk)

    def unmap(self, lo: int, hi: int) -> None:
        """The guard takes the place of the mapped chunks at ``[lo, hi)``; memory nobody else refers to is freed."""
        try:
            self._unmap_pages(lo, hi)
        except OSError as error:
            raise _refused(self, "unmap", error) from error
        self.store.drop(self._forget(lo, hi), self.account, self.window)

    def unmap_later(self, lo: int, hi: int) -> None:
        """Let go of the chunks at ``[lo, hi)``; :meth:`settle` unmaps them and gives them back."""
        self.stale.update(zip(range(lo, hi), self._forget(lo, hi), strict=True))

    def _forget(self, lo: int, hi: int) -> list[int]:
        taken = [self.chunks.pop(index) for index in range(lo, hi)]
        if self.readonly:
            self.readonly.difference_update(range(lo, hi))
        self.account.add_mapped(-len(taken) * self.store.backend.chunk)
        return taken

    def spans(self) -> list[Run]:
        """What is mapped, as runs of indices."""
        return runs_of(sorted(self.chunks))

    def settle(self, most: int | None = None) -> None:
        """Unmap what is stale (at most so many chunks of it) and give it back."""
        for lo, count in runs_of(sorted(self.stale)[:most]):
            try:
                self._unmap_pages(lo, lo + count)
            except OSError as error:
                raise _refused(self, "unmap", error) from error
            self.store.drop([self.stale.pop(i) for i in range(lo, lo + count)], self.account, self.window)

    def adopt(self, at: int, chunks: Sequence[int], source: Account) -> None:
        """Map chunks that ``source`` refers to at ``at`` as well, read-only."""
        if self.stale:
            self.settle()
        end = at + len(chunks)
        self.store.share(chunks, source, self.account)
        self._place(at, end, runs_of(chunks), writable=False)
        self.chunks.update(zip(range(at, end), chunks, strict=True))
        self.readonly.update(range(at, end))
        self.account.add_mapped(len(chunks) * self.store.backend.chunk)

    def protect(self, lo: int, hi: int) -> list[Run]:
        """Make ``[lo, hi)`` read-only; returns the runs of indices that were writable before."""
        done: list[Run] = []
        for run in runs_of(index for index in range(lo, hi) if index not in self.readonly):
            try:
                self._set_access(run, writable=False)
            except (OSError, OutOfMemory) as error:
                self.unprotect(done)
                raise _refused(self, "protect", error) from error
            done.append(run)
        return done

    def unprotect(self, runs: Iterable[Run]) -> None:
        """Undo :meth:`protect`, as far as the system lets us: what stays read-only is known to be."""
        for run in runs:
            with contextlib.suppress(OSError, OutOfMemory):
                self._set_access(run, writable=True)

    def _set_access(self, run: Run, *, writable: bool) -> None:
        (lo, count), chunk = run, self.store.backend.chunk
        self.store.backend.protect(self.address + lo * chunk, count * chunk, writable=writable)
        change = self.readonly.difference_update if writable else self.readonly.update
        change(range(lo, lo + count))

    def count_shared(self, lo: int, hi: int) -> int:
        """How many of the chunks at ``[lo, hi)`` have other holders, so that writing them takes a copy."""
        shared = self.store.is_shared
        return sum(shared(self.chunks[index]) for index in range(lo, hi) if index in self.readonly)

    def make_writable(self, lo: int, hi: int) -> None:
        """Copy what is shared in ``[lo, hi)``, lift the protection of the rest. What was done stays on failure."""
        if self.stale:
            self.settle()
        closed = [index for index in range(lo, hi) if index in self.readonly]
        shared = [index for index in closed if self.store.is_shared(self.chunks[index])]
        self._copy_on_write(shared)
        copied = set(shared)
        for run in runs_of(index for index in closed if index not in copied):
            try:
                self._set_access(run, writable=True)
            except (OSError, OutOfMemory) as error:
                raise _refused(self, "protect", error) from error

    def _copy_on_write(self, indices: list[int]) -> None:
        """Put copies in the place of the chunks at these indices: each row of them with one call, or not at all."""
        store = self.store
        store.commit(len(indices), self.name)
        left = len(indices)
        try:
            for lo, count in runs_of(indices):
                runs = store.numbers.take(self.window, range(lo, lo + count), self.chunks)
                left -= count
                self._copy_runs(lo, runs)
        finally:
            store.uncommit(left)

    def _copy_runs(self, index: int, runs: Sequence[Run]) -> None:
        for at, run in enumerate(runs):
            try:
                self._copy_run(index, run)
            except (OSError, OutOfMemory) as error:
                self.store.drop(chunks_in(runs[at:]), self.account, self.window)
                raise _refused(self, "copy", error) from error
            index += run[1]

    def _copy_run(self, lo: int, run: Run) -> None:
        store, chunk = self.store, self.store.backend.chunk
        first, count = run
        places = range(lo, lo + count)
        for index in places:
            store.backend.copy(self.address + index * chunk, first + index - lo)
        store.backend.replace(self.address + lo * chunk, run)
        replaced = [self.chunks[index] for index in places]
        self.chunks.update(zip(places, range(first, first + count), strict=True))
        self.readonly.difference_update(places)
        store.drop(replaced, self.account, self.window)

    def release(self) -> None:
        """Give the address range back, and everything in it. ``OSError`` leaves the range as it was."""
        self.store.backend.unreserve(self.address)
        # Whoever still knows this region (a request in the background thread's queue) must not map there any more.
        self.state = "released"
        mapped = list(self.chunks.values())
        self.account.add_mapped(-len(mapped) * self.store.backend.chunk)
        self.account.add_reserved(-self.size)
        mapped += self.stale.values()
        self.chunks.clear()
        self.stale.clear()
        self.readonly.clear()
        self.store.drop(mapped, self.account, self.window)
        self.store.numbers.retire(self.window)


def _refused(region: Region, what: str, error: Exception) -> VirtualMemoryError:
    """The system's refusal as an error of ours that names the owner."""
    if isinstance(error, VirtualMemoryError):
        return type(error)(error.what, f"owner {region.name}", *error.details, hint=error.hint)
    kind = OutOfMemory if isinstance(error, OSError) and error.errno == errno.ENOMEM else VirtualMemoryError
    return kind(f"the system refused to {what} memory for {region.name}", str(error), hint="free memory, and try again")
