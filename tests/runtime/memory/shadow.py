"""A pool and a shadow of it: every operation is done to both, and they must agree, also when system calls fail.

The shadow knows for each vTensor the cell behind each chunk. A cell is three words (the first of the chunk, one in its
middle, the last) and is the same object wherever the chunk is shared; so aliasing, wrong bytes and leaks all show up as
a difference between the cells and the memory, or the number of cells and the pool's books.
"""

import ctypes
import errno
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from fake_driver import FakeDriver
from memory_pools import CHUNK, open_pool

from superscaler.errors import OutOfMemory, VirtualMemoryError
from superscaler.runtime.memory import Chunks, Pool, VTensor
from superscaler.runtime.memory.cuda_driver import CudaDriver, DriverError
from superscaler.runtime.memory.mappings import MappingMeter, count
from superscaler.runtime.memory.syscalls import LinuxMemory

RANGE = 24


class Fuse:
    """Lets the next ``after`` calls pass, and the ``failures`` after that fail."""

    def __init__(self) -> None:
        self.after = self.failures = self.blown = 0

    def arm(self, after: int, failures: int) -> None:
        self.after, self.failures, self.blown = after, failures, 0

    def disarm(self) -> int:
        blown, self.failures, self.blown = self.blown, 0, 0
        return blown

    def blows(self) -> bool:
        if not self.failures:
            return False
        if self.after:
            self.after -= 1
            return False
        self.failures -= 1
        self.blown += 1
        return True


def failing(kind: type, methods: tuple[str, ...], error: type[OSError]) -> type:
    """A seam whose calls fail when the fuse says so."""

    def wrap(name: str):
        original = getattr(kind, name)

        def call(self, *args, **kwargs):
            if self.fuse.blows():
                raise error(errno.ENOMEM, f"{name}: injected")
            return original(self, *args, **kwargs)

        return call

    return type("Failing" + kind.__name__, (kind,), {name: wrap(name) for name in methods})


FailingMemory = failing(LinuxMemory, ("mmap", "munmap", "mprotect", "madvise", "punch_hole", "pwrite"), OSError)
DRIVER_CALLS = (
    "reserve", "free_address", "create", "release", "map", "unmap", "set_access", "fill_zero", "copy", "synchronize",
)  # fmt: skip
FailingDriver = failing(FakeDriver, DRIVER_CALLS, DriverError)
FailingCudaDriver = failing(CudaDriver, DRIVER_CALLS, DriverError)


class HostWords:
    """The words of a chunk, where the memory can be touched."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.places = (0, chunk // 2, chunk - 8)

    def _at(self, vtensor: VTensor, index: int, word: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(vtensor.address + index * self.chunk + self.places[word])

    def write(self, vtensor: VTensor, index: int, word: int, value: int) -> None:
        self._at(vtensor, index, word).value = value

    def read(self, vtensor: VTensor, chunks: int) -> list[list[int]]:
        return [[self._at(vtensor, index, word).value for word in range(3)] for index in range(chunks)]


class DeviceWords(HostWords):
    """The same by kernels, which are still under way when the next operation begins."""

    def write(self, vtensor: VTensor, index: int, word: int, value: int) -> None:
        place = index * self.chunk + self.places[word]
        vtensor.tensor((1,), torch.int64, offset=place).fill_(value)

    def read(self, vtensor: VTensor, chunks: int) -> list[list[int]]:
        words = vtensor.tensor((chunks, self.chunk // 8), torch.int64)
        return torch.stack([words[:, place // 8] for place in self.places], 1).tolist()


class Cell:
    """What a chunk contains."""

    __slots__ = ("words",)

    def __init__(self, words: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.words = list(words)


@dataclass
class Entry:
    vtensor: VTensor
    cells: list[Cell] = field(default_factory=list)


class Shadow:
    """``device``: number of the real one to work on, instead of a stand-in. ``words``: how chunks are written."""

    def __init__(
        self, backend: str, chunks: int = 64, *, lazy: bool = False, device: int | None = None, words: Any = None
    ) -> None:
        self.fuse = Fuse()
        if device is not None:
            seam: Any = FailingCudaDriver(device)
        else:
            seam = FailingMemory(MappingMeter()) if backend == "host" else FailingDriver()
        seam.fuse = self.fuse
        self.seam = seam
        self.limit = chunks
        self.chunk = CHUNK if device is None else seam.granularity()
        self.words = (words or HostWords)(self.chunk)
        self.pool: Pool = open_pool(backend, chunks, seam=seam, lazy=lazy, chunk=self.chunk)
        self.entries: list[Entry] = []
        self.held: list[tuple[Chunks, list[Cell]]] = []
        self.failures = 0
        self._baseline = count()

    # Operations: each does the same to both sides, and copes with a refusal.

    def reserve(self) -> None:
        def act() -> None:
            self.entries.append(Entry(self.pool.reserve(RANGE * self.chunk, owner="shadow")))

        self._attempt(act)

    def extend(self, entry: Entry, chunks: int) -> None:
        chunks = min(chunks, RANGE - len(entry.cells))
        if self._attempt(lambda: entry.vtensor.extend(chunks * self.chunk), needs=chunks):
            entry.cells += [Cell() for _ in range(chunks)]

    def trim(self, entry: Entry, chunks: int) -> None:
        chunks = min(chunks, len(entry.cells))
        if self._attempt(lambda: entry.vtensor.trim(chunks * self.chunk)):
            del entry.cells[chunks:]

    def share(self, target: Entry, source: Entry, start: int, chunks: int) -> None:
        chunks = min(chunks, len(source.cells) - start, RANGE - len(target.cells))
        if chunks <= 0:
            return
        before = self._writability(source)
        if self._attempt(lambda: target.vtensor.share(source.vtensor, chunks * self.chunk, start * self.chunk)):
            target.cells += source.cells[start : start + chunks]
        elif self.blown == 1:
            assert self._writability(source) == before, "a refused share leaves its source as it was"

    def write(self, entry: Entry, index: int, word: int, value: int) -> None:
        if index < len(entry.cells) and entry.vtensor.is_writable(index * self.chunk, index * self.chunk + 1):
            assert self._holders(entry.cells[index]) == 1, "what may be written belongs to nobody else"
            entry.cells[index].words[word] = value
            self.words.write(entry.vtensor, index, word, value)

    def writable(self, entry: Entry, lo: int, hi: int) -> None:
        hi = min(hi, len(entry.cells))
        if lo >= hi:
            return
        shared = sum(self._holders(cell) > 1 for cell in entry.cells[lo:hi])
        done = self._attempt(lambda: entry.vtensor.writable(lo * self.chunk, hi * self.chunk), needs=shared)
        for index in range(lo, hi):
            may = entry.vtensor.is_writable(index * self.chunk, index * self.chunk + 1)
            assert may or not done
            if may and self._holders(entry.cells[index]) > 1:
                entry.cells[index] = Cell(tuple(entry.cells[index].words))

    def free(self, entry: Entry) -> None:
        if self._attempt(entry.vtensor.free):
            self.entries.remove(entry)

    def drop(self, entry: Entry) -> None:
        """Forget it without freeing it: the finalizer's business."""
        self.entries.remove(entry)
        del entry

    def hold(self, entry: Entry, lo: int, hi: int) -> None:
        hi = min(hi, len(entry.cells))
        if lo < hi:

            def act() -> None:
                self.held.append((entry.vtensor.hold(lo * self.chunk, hi * self.chunk), entry.cells[lo:hi]))

            self._attempt(act)

    def share_held(self, target: Entry, which: int) -> None:
        held, cells = self.held[which]
        if len(target.cells) + len(cells) <= RANGE and self._attempt(lambda: target.vtensor.share(held, held.size)):
            target.cells += cells

    def release_held(self, which: int) -> None:
        self.held.pop(which)[0].free()

    # Agreement.

    def check(self, entry: Entry) -> None:
        """Size and content of one vTensor."""
        assert entry.vtensor.size == entry.vtensor.mapped == len(entry.cells) * self.chunk
        found = self.words.read(entry.vtensor, len(entry.cells))
        for index, (cell, read) in enumerate(zip(entry.cells, found, strict=True)):
            assert read == cell.words, f"{entry.vtensor} chunk {index}: {read} instead of {cell.words}"

    def check_all(self) -> None:
        """Everything, and the pool's books; what the system refused is retried first."""
        self.fuse.disarm()
        for entry in self.entries:
            self.check(entry)
        self.pool.settle()
        stats = self.pool.stats()
        cells = self._cells()
        assert stats.waiting == 0
        assert stats.committed == len(set(cells)) * self.chunk, "chunks have leaked"
        assert stats.physical <= stats.committed
        assert stats.mapped == sum(len(entry.cells) for entry in self.entries) * self.chunk
        assert stats.reserved == len(self.entries) * RANGE * self.chunk
        assert stats.shared == sum(cells.count(cell) > 1 for cell in set(cells)) * self.chunk
        if type(self.words) is HostWords:
            most = sum(len(entry.cells) + 3 for entry in self.entries) + 64
            assert count() - self._baseline <= most, "mappings have leaked"

    def close(self) -> None:
        self.check_all()
        self.entries.clear()
        while self.held:
            self.release_held(0)
        self.check_all()
        self.pool.close()
        assert self.pool.stats().physical == 0

    def _attempt(self, act, needs: int = 0) -> bool:
        fits = len(set(self._cells())) + needs <= self.limit
        try:
            act()
        except OutOfMemory:
            self.blown = self.fuse.disarm()
            assert self.blown or not fits, "refused without a reason"
        except VirtualMemoryError:
            self.blown = self.fuse.disarm()
            assert self.blown, "refused without a reason"
        else:
            self.fuse.disarm()
            assert fits, "the budget was exceeded"
            return True
        self.failures += self.blown
        return False

    def _cells(self) -> list[Cell]:
        cells = [cell for entry in self.entries for cell in entry.cells]
        return cells + [cell for _, held in self.held for cell in held]

    def _holders(self, cell: Cell) -> int:
        return sum(entry.cells.count(cell) for entry in self.entries) + sum(held.count(cell) for _, held in self.held)

    def _writability(self, entry: Entry) -> list[bool]:
        return [
            entry.vtensor.is_writable(index * self.chunk, index * self.chunk + 1) for index in range(len(entry.cells))
        ]


def random_step(shadow: Shadow, draw: random.Random) -> None:
    """One random operation; one in five meets failing system calls."""
    entries = shadow.entries
    if len(entries) < 2:
        return shadow.reserve()
    if draw.random() < 0.2:
        shadow.fuse.arm(draw.choice((0, 0, 1, 2, 5)), draw.choice((1, 1, 1, 2, 3)))
    entry, lo, count_ = draw.choice(entries), draw.randrange(RANGE), draw.randrange(1, 9)
    kind = draw.random()
    if kind < 0.30:
        for _ in range(4):
            shadow.write(entry, draw.randrange(RANGE), draw.randrange(3), draw.getrandbits(63))
    elif kind < 0.50:
        shadow.extend(entry, count_)
    elif kind < 0.62:
        shadow.trim(entry, draw.randrange(RANGE))
    elif kind < 0.75:
        shadow.share(entry, draw.choice(entries), lo // 2, count_)
    elif kind < 0.86:
        shadow.writable(entry, lo, lo + count_)
    elif kind < 0.89:
        shadow.hold(entry, lo, lo + count_)
    elif kind < 0.91 and shadow.held:
        shadow.share_held(entry, draw.randrange(len(shadow.held)))
    elif kind < 0.95 and len(shadow.held) > 2:
        shadow.release_held(0)
    elif kind < 0.97 and len(entries) < 8:
        shadow.reserve()
    elif kind < 0.99:
        shadow.free(entry)
    else:
        shadow.drop(entry)
    shadow.fuse.disarm()
    if entries:
        shadow.check(draw.choice(entries))
    return None
