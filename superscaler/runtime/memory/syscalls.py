"""The system calls of the host backend, in one thin class: counted, typed, and replaceable by a failing one in tests.

glibc is called through ctypes, which releases the interpreter lock for the time of the call. Every failure is an
``OSError`` with its errno; nothing is retried here except ``EINTR``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import Counter

from superscaler.runtime.memory.mappings import MAPPINGS, MappingMeter

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x1, 0x2, 0x10, 0x20, 0x4000
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 0x1, 0x2
MADV_DONTDUMP, MADV_POPULATE_WRITE, MADV_COLLAPSE = 16, 23, 25

_FAILED = ctypes.c_void_p(-1).value


class LinuxMemory:
    """``mmap`` and its relatives. Addresses and lengths are bytes; ``calls`` counts each call by name."""

    def __init__(self, meter: MappingMeter = MAPPINGS) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        pointer, size, number, offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64
        self.calls: Counter[str] = Counter()
        self._meter = meter
        self._mmap = libc.mmap
        self._mmap.restype, self._mmap.argtypes = pointer, [pointer, size, number, number, number, offset]
        self._munmap = libc.munmap
        self._munmap.argtypes = [pointer, size]
        self._mprotect = libc.mprotect
        self._mprotect.argtypes = [pointer, size, number]
        self._madvise = libc.madvise
        self._madvise.argtypes = [pointer, size, number]
        self._fallocate = libc.fallocate
        self._fallocate.argtypes = [number, number, offset, offset]
        self._pwrite = libc.pwrite
        self._pwrite.restype, self._pwrite.argtypes = ctypes.c_ssize_t, [number, pointer, size, offset]

    def mmap(self, address: int | None, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
        """Map and return the address. A mapping that adds memory is refused near the system's limit on mappings."""
        self._meter.charge(2, refusable=address is None or (fd >= 0 and protection != PROT_NONE))
        self.calls["mmap"] += 1
        got = self._mmap(address, length, protection, flags, fd, offset)
        if got == _FAILED or got is None:
            raise _error("mmap")
        return got

    def munmap(self, address: int, length: int) -> None:
        self._meter.charge(1, refusable=False)
        self.calls["munmap"] += 1
        if self._munmap(address, length):
            raise _error("munmap")

    def mprotect(self, address: int, length: int, protection: int) -> None:
        self._meter.charge(2, refusable=True)
        self.calls["mprotect"] += 1
        if self._mprotect(address, length, protection):
            raise _error("mprotect")

    def madvise(self, address: int, length: int, advice: int) -> None:
        self.calls["madvise"] += 1
        if self._madvise(address, length, advice):
            raise _error("madvise")

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        """Give the pages of a file range back to the system; the range then reads as zeros."""
        while True:
            self.calls["fallocate"] += 1
            if not self._fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
                return
            if ctypes.get_errno() != errno.EINTR:
                raise _error("fallocate")

    def pwrite(self, fd: int, address: int, length: int, offset: int) -> None:
        """Write ``length`` bytes of memory at ``address`` into the file, all of them."""
        done = 0
        while done < length:
            self.calls["pwrite"] += 1
            wrote = self._pwrite(fd, address + done, length - done, offset + done)
            if wrote > 0:
                done += wrote
            elif wrote == 0 or ctypes.get_errno() != errno.EINTR:
                raise _error("pwrite")

    def memfd_create(self, name: str) -> int:
        self.calls["memfd_create"] += 1
        return os.memfd_create(name, os.MFD_CLOEXEC)

    def ftruncate(self, fd: int, length: int) -> None:
        self.calls["ftruncate"] += 1
        os.ftruncate(fd, length)


def _error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")
