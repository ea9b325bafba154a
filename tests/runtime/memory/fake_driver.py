"""A driver without a device: the same calls as NVIDIA's, the same demands, over memory of this machine.

It insists on what the real one insists on: granularity, handles mapped whole, ranges unmapped whole, nothing mapped
over something, no access before ``set_access``, no address freed with something mapped. Fresh handles hold garbage.
"""

import ctypes
import os
from collections import Counter

import torch

from superscaler.runtime.memory.cuda_driver import DriverError
from superscaler.runtime.memory.mappings import MappingMeter
from superscaler.runtime.memory.syscalls import LinuxMemory

GRANULARITY = 1 << 16
SPACING = 4 << 20  # bytes of the file between two handles: the largest chunk
PROT_NONE, READ, READ_WRITE = 0, 1, 3
SHARED_FIXED, EMPTY, EMPTY_FIXED = 0x11, 0x4022, 0x4032


class FakeDriver:
    def __init__(self, memory: int = 1 << 30) -> None:
        self.calls: Counter[str] = Counter()
        self._linux = LinuxMemory(MappingMeter(1 << 30))
        self._fd = os.memfd_create("fake-device")
        os.ftruncate(self._fd, memory * 64)
        self._memory = memory
        self._next = 1
        self._sizes: dict[int, int] = {}  # handle -> size, until its memory is gone
        self._released: set[int] = set()
        self.ranges: dict[int, int] = {}
        self.mapped: dict[int, int] = {}  # address -> handle
        self.access: dict[int, int] = {}

    def __del__(self) -> None:
        os.close(self._fd)

    @property
    def live(self) -> int:
        """Bytes of physical memory that exist."""
        return sum(self._sizes.values())

    def granularity(self) -> int:
        return GRANULARITY

    def reserve(self, size: int) -> int:
        self._count("reserve", size)
        raw = self._linux.mmap(None, size + GRANULARITY, PROT_NONE, EMPTY, -1, 0)
        address = -(-raw // GRANULARITY) * GRANULARITY
        self.ranges[address] = size
        return address

    def free_address(self, address: int, size: int) -> None:
        self._count("free_address", size)
        assert self.ranges[address] == size, "a range is freed as it was reserved"
        assert not any(address <= place < address + size for place in self.mapped), "something is mapped in the range"
        del self.ranges[address]

    def create(self, size: int) -> int:
        self._count("create", size)
        if self.live + size > self._memory:
            raise DriverError(12, "out of memory")
        handle, self._next = self._next, self._next + 1
        self._sizes[handle] = size
        os.pwrite(self._fd, b"\xab" * size, handle * SPACING)
        return handle

    def release(self, handle: int) -> None:
        self._count("release")
        assert handle in self._sizes, "a handle that does not exist"
        assert handle not in self._released, "a handle is released once"
        self._released.add(handle)
        self._collect(handle)

    def _collect(self, handle: int) -> None:
        # As with the real one: memory lives until it is both released and unmapped everywhere.
        if handle in self._released and handle not in self.mapped.values():
            self._linux.punch_hole(self._fd, handle * SPACING, self._sizes.pop(handle))

    def map(self, address: int, size: int, handle: int) -> None:
        self._count("map", size)
        assert size == self._sizes[handle], "a handle is mapped whole"
        assert address not in self.mapped, "something is mapped there"
        assert any(base <= address and address + size <= base + width for base, width in self.ranges.items())
        self._linux.mmap(address, size, PROT_NONE, SHARED_FIXED, self._fd, handle * SPACING)
        self.mapped[address] = handle
        self.access[address] = PROT_NONE

    def unmap(self, address: int, size: int) -> None:
        self._count("unmap", size)
        at = address
        while at < address + size:
            handle = self.mapped.pop(at)
            del self.access[at]
            at += self._sizes[handle]
            self._collect(handle)
        assert at == address + size, "mappings are unmapped whole"
        self._linux.mmap(address, size, PROT_NONE, EMPTY_FIXED, -1, 0)

    def set_access(self, address: int, size: int, *, writable: bool) -> None:
        self._count("set_access", size)
        at = address
        while at < address + size:
            self.access[at] = READ_WRITE if writable else READ
            at += self._sizes[self.mapped[at]]
        self._linux.mprotect(address, size, READ_WRITE if writable else READ)

    def fill_zero(self, address: int, size: int) -> None:
        self._count("fill_zero", size)
        ctypes.memset(address, 0, size)

    def copy(self, target: int, source: int, size: int) -> None:
        self._count("copy", size)
        ctypes.memmove(target, source, size)

    def synchronize(self) -> None:
        self._count("synchronize")

    def tensor(self, address: int, size: int, keep: object) -> torch.Tensor:
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        memory = (ctypes.c_char * size).from_address(address)
        memory.keep = keep
        return torch.frombuffer(memory, dtype=torch.uint8)

    def _count(self, name: str, size: int = GRANULARITY) -> None:
        assert size > 0
        assert size % GRANULARITY == 0, "sizes are multiples of the granularity"
        self.calls[name] += 1
