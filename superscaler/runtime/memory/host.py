"""The host backend: real virtual memory on a machine without a GPU.

All physical memory of a pool is one anonymous memfd: chunk ``i`` is its bytes ``[i * chunk, (i + 1) * chunk)``. The
file is sparse and practically endless (2^62 bytes): numbers are free, and memory is used only where a page was touched.
Sharing is the same part of the file mapped at two addresses; giving memory back is punching a hole. A memfd has no
path: nothing is left when the process dies, however it dies.

A reserved range is its own part of the file with ``PROT_NONE``, so that mapping a chunk where it is at home only moves
the border of what may be touched: a call of half a new mapping's time. Other chunks are mapped anew, and so are
all of a pool whose guard is zeros: a closed part of the file can trap, but not read as zeros.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import resource
import sys
import weakref
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from superscaler.errors import BackendUnavailable, OutOfMemory, UsageError
from superscaler.runtime.memory.backend import Guard, Run
from superscaler.runtime.memory.syscalls import (
    MADV_COLLAPSE,
    MADV_DONTDUMP,
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    LinuxMemory,
)

if TYPE_CHECKING:
    import torch

PAGE = resource.getpagesize()
HUGE_PAGE = 2 << 20
FILE_SIZE = 1 << 62
READ_WRITE = PROT_READ | PROT_WRITE
EMPTY = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
CLOSED = MAP_SHARED | MAP_FIXED | MAP_NORESERVE
NOWHERE = -1  # no place of a page, whatever multiple of pages is added


class HostBackend:
    """Chunks of one memfd in ranges of the process's address space. See :class:`~.backend.Backend`."""

    name = "host"

    def __init__(
        self, chunk: int = 2 << 20, guard: Guard = "trap", *, label: str = "pool", system: LinuxMemory | None = None
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise BackendUnavailable(
                "the host backend needs Linux", f"this is {sys.platform}", hint="run on Linux (memfd, MAP_FIXED)"
            )
        if chunk <= 0 or chunk % PAGE:
            raise UsageError(
                f"chunk={chunk} is not a multiple of the page size",
                f"a page is {PAGE} bytes here",
                hint="a multiple of it",
            )
        self.chunk = chunk
        self.guard: Guard = guard
        self._guard_protection = PROT_READ if guard == "zero" else PROT_NONE
        self._system = system or LinuxMemory()
        self._starts: list[int] = []  # where ranges begin, sorted
        # From there: where what was mapped for it begins, its size, and which part of the file is closed in it.
        self._ranges: dict[int, tuple[int, int, int]] = {}
        self._buffer_types: dict[int, type[ctypes.Array[ctypes.c_char]]] = {}
        self._fd, size = _open_file(self._system, label)
        self._closed = weakref.finalize(self, os.close, self._fd)
        self._closed.atexit = False
        self.capacity = size // chunk
        # Address and file offset agree modulo the huge page, or the kernel could never use one.
        self.alignment = HUGE_PAGE // math.gcd(HUGE_PAGE, chunk)

    def reserve(self, size: int, home: int) -> int:
        # Whole huge pages, as windows of chunks are, so that what lies side by side is so in the file, too.
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
        try:
            address, start, total = self._addresses(size)
        except OSError as error:
            raise OutOfMemory(
                f"no address range of {size:,} bytes is free in this process",
                str(error),
                hint="a smaller reservation: 47 bits of addresses is what a process has",
            ) from error
        insort(self._starts, address)
        self._ranges[address] = start, total, NOWHERE
        if self.guard == "trap":
            # Where the system refuses, it stays empty addresses: every chunk is mapped anew.
            with contextlib.suppress(OSError):
                self._close(address, size, home * self.chunk)
                self._ranges[address] = start, total, home * self.chunk
        return address

    def _addresses(self, size: int) -> tuple[int, int, int]:
        """Fresh addresses from where a huge page can begin; and where what was mapped for them begins, and its size."""
        mmap, munmap = self._system.mmap, self._system.munmap
        address = mmap(None, size, self._guard_protection, EMPTY, -1, 0)
        if address % HUGE_PAGE == 0:
            return address, address, size
        try:
            munmap(address, size)
        except OSError:
            return address, address, size
        start = mmap(None, size + HUGE_PAGE, self._guard_protection, EMPTY, -1, 0)
        address, end = -(-start // HUGE_PAGE) * HUGE_PAGE, start + size + HUGE_PAGE
        # Without what is too much on either side the next range lies well by itself.
        with contextlib.suppress(OSError):
            munmap(address + size, end - address - size)
            end = address + size
            if start < address:
                munmap(start, address - start)
                start = address
        return address, start, end - start

    def unreserve(self, address: int) -> None:
        start, total, _ = self._ranges[address]
        self._system.munmap(start, total)
        del self._ranges[address]
        del self._starts[bisect_left(self._starts, address)]

    def map(self, address: int, runs: Sequence[Run], *, writable: bool) -> None:
        chunk, home = self.chunk, self._home(address)
        protection = READ_WRITE if writable else PROT_READ
        for first, count in runs:
            if first * chunk == home:
                self._system.mprotect(address, count * chunk, protection)
            else:
                self._map_anew(address, (first, count), protection)
            address, home = address + count * chunk, home + count * chunk

    def _home(self, address: int) -> int:
        """Which part of the file is closed at an address that has nothing mapped, or :data:`NOWHERE`."""
        start = self._starts[bisect_right(self._starts, address) - 1]
        place = self._ranges[start][2]
        return place if place == NOWHERE else address - start + place

    def _map_anew(self, address: int, run: Run, protection: int) -> None:
        first, count = run
        chunk = self.chunk
        self._system.mmap(address, count * chunk, protection, MAP_SHARED | MAP_FIXED, self._fd, first * chunk)

    def replace(self, address: int, run: Run) -> None:
        # MAP_FIXED replaces atomically: a reader sees the old chunk or its copy, never the guard.
        self._map_anew(address, run, READ_WRITE)

    def unmap(self, address: int, size: int) -> None:
        home = self._home(address)
        if home == NOWHERE:
            self._system.mmap(address, size, self._guard_protection, EMPTY | MAP_FIXED, -1, 0)
        else:
            self._close(address, size, home)

    def _close(self, address: int, size: int, home: int) -> None:
        self._system.mmap(address, size, PROT_NONE, CLOSED, self._fd, home)
        # A core dump would look into every page of it, and make those that are not there.
        with contextlib.suppress(OSError):
            self._system.madvise(address, size, MADV_DONTDUMP)

    def protect(self, address: int, size: int, *, writable: bool) -> None:
        self._system.mprotect(address, size, READ_WRITE if writable else PROT_READ)

    def copy(self, address: int, chunk: int) -> None:
        self._system.pwrite(self._fd, address, self.chunk, chunk * self.chunk)

    def discard(self, run: Run) -> None:
        first, count = run
        self._system.punch_hole(self._fd, first * self.chunk, count * self.chunk)

    def populate(self, address: int, size: int) -> bool:
        # Huge pages need Linux 6.1 and 2 MiB of one file in a row; faults, copies and giving back are far cheaper then.
        try:
            self._system.madvise(address, size, MADV_POPULATE_WRITE)
            self._system.madvise(address, size, MADV_COLLAPSE)
        except OSError:
            return False
        return True

    def physical(self) -> int:
        return 0 if not self._closed.alive else os.fstat(self._fd).st_blocks * 512

    def calls(self) -> dict[str, int]:
        return dict(self._system.calls)

    def buffer(self, address: int, size: int) -> object:
        kind = self._buffer_types.get(size)
        if kind is None:
            kind = self._buffer_types[size] = ctypes.c_char * size
        return kind.from_address(address)

    def tensor(self, buffer: Any, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        import torch

        count = math.prod(shape)
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).view(tuple(shape))

    def close(self) -> None:
        if self._closed.alive:
            # Ranges that views keep alive keep the file alive, too, but not what is in it.
            with contextlib.suppress(OSError):
                self._system.punch_hole(self._fd, 0, self.capacity * self.chunk)
        self._closed()


def _file_name(label: str) -> str:
    """What ``/proc`` shows of a pool's file: of limited length, and without what ends a name."""
    return f"superscaler:{label}".replace("\0", "?").encode(errors="replace")[:200].decode(errors="ignore")


def _open_file(system: LinuxMemory, label: str) -> tuple[int, int]:
    """A sparse memfd and its size: as large as the limit on file sizes lets it be."""
    try:
        fd = system.memfd_create(_file_name(label))
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(
            "the host backend cannot create a memfd", str(error), hint="Linux 3.17 or later, and a free file descriptor"
        ) from error
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    size = FILE_SIZE if limit == resource.RLIM_INFINITY else min(FILE_SIZE, limit)
    try:
        system.ftruncate(fd, size)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.close(fd)
        if error.errno == errno.EFBIG:
            raise BackendUnavailable(
                "the host backend cannot size its memfd", str(error), hint="a larger limit on file sizes: ulimit -f"
            ) from error
        raise
    return fd, size
