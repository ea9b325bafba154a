"""The host backend: real virtual memory on a machine without a GPU.

Ranges are reserved with ``PROT_NONE``; all physical memory of a pool is one anonymous memfd, of which chunk ``i`` is
the bytes ``[i * chunk, (i + 1) * chunk)``. The file is sparse and practically endless (2^62 bytes), so numbers are free
and memory is used only where a page was touched. Sharing is the same part of the file mapped at two addresses; giving
memory back is punching a hole. A memfd has no path: nothing is left when the process dies, however it dies.
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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from superscaler.errors import BackendUnavailable, OutOfMemory, UsageError
from superscaler.runtime.memory.backend import Guard, Run
from superscaler.runtime.memory.syscalls import (
    MADV_COLLAPSE,
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
        self._reserved: dict[int, tuple[int, int]] = {}
        self._buffer_types: dict[int, type[ctypes.Array[ctypes.c_char]]] = {}
        self._fd, size = _open_file(self._system, label)
        self._closed = weakref.finalize(self, os.close, self._fd)
        self._closed.atexit = False
        self.capacity = size // chunk
        # Address and file offset agree modulo the huge page, or the kernel could never use one.
        self.alignment = HUGE_PAGE // math.gcd(HUGE_PAGE, chunk)

    def reserve(self, size: int) -> int:
        slack = HUGE_PAGE if size >= HUGE_PAGE else 0
        try:
            raw = self._system.mmap(None, size + slack, self._guard_protection, EMPTY, -1, 0)
        except OSError as error:
            raise OutOfMemory(
                f"no address range of {size:,} bytes is free in this process",
                str(error),
                hint="a smaller reservation: 47 bits of addresses is what a process has",
            ) from error
        address = -(-raw // HUGE_PAGE) * HUGE_PAGE if slack else raw
        self._reserved[address] = (raw, size + slack)
        return address

    def unreserve(self, address: int) -> None:
        self._system.munmap(*self._reserved[address])
        del self._reserved[address]

    def map(self, address: int, runs: Sequence[Run], *, writable: bool) -> None:
        chunk, fd, mmap = self.chunk, self._fd, self._system.mmap
        protection = READ_WRITE if writable else PROT_READ
        for first, count in runs:
            mmap(address, count * chunk, protection, MAP_SHARED | MAP_FIXED, fd, first * chunk)
            address += count * chunk

    def replace(self, address: int, run: Run) -> None:
        # MAP_FIXED replaces atomically: a reader sees the old chunk or its copy, never the guard.
        self.map(address, [run], writable=True)

    def unmap(self, address: int, size: int) -> None:
        self._system.mmap(address, size, self._guard_protection, EMPTY | MAP_FIXED, -1, 0)

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
