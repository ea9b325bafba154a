"""The CUDA backend: the driver's virtual memory management, with a chunk as one physical handle.

What the driver demands shapes it: a handle is mapped whole and unmapped whole; access is set per span, and is most of
the cost, so one call covers a new span; unmapping under a running kernel is an error, and so is protecting what it has
still to write: both wait for the device first. A handle's memory may have been anybody's before: a fresh chunk is
filled with zeros where it is mapped.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from superscaler.errors import OutOfMemory, UsageError
from superscaler.runtime.memory.backend import Guard, Run, runs_of
from superscaler.runtime.memory.cuda_driver import CudaDriver, DriverError, VirtualMemoryDriver
from superscaler.runtime.memory.store import chunks_in

if TYPE_CHECKING:
    import torch


class CudaBackend:
    """Chunks on one device. See :class:`~.backend.Backend`.

    ``spare``: so many handles of freed chunks are kept for the next ones instead of being released (creating one costs
    more than mapping it). With ``guard="zero"``, what is unmapped reads as one read-only chunk of zeros.
    """

    name = "cuda"

    def __init__(
        self, chunk: int = 2 << 20, guard: Guard = "trap", *, spare: int = 0, driver: VirtualMemoryDriver | None = None
    ) -> None:
        self.driver = driver or CudaDriver()
        granularity = self.driver.granularity()
        if chunk <= 0 or chunk % granularity:
            raise UsageError(
                f"chunk={chunk:,} is not a multiple of the device's granularity of {granularity:,} bytes",
                hint="a multiple of it",
            )
        self.chunk = chunk
        self.guard: Guard = guard
        self.capacity = 1 << 62
        self.alignment = 1
        self._spare_limit = spare
        self._spare: list[int] = []
        self._handles: dict[int, int] = {}
        self._mapped: dict[int, int] = {}  # address to handle
        self._guarded: set[int] = set()  # addresses at which the chunk of zeros is mapped
        self._zeros: int | None = None
        self._scratch: int | None = None
        self._scratch_in_use = False
        self._torn: dict[int, int] = {}  # address to the handle that belongs there, but may not be there
        self._sizes: dict[int, int] = {}

    def reserve(self, size: int, home: int) -> int:
        try:
            address = self.driver.reserve(size)
        except DriverError as error:
            raise OutOfMemory(
                f"no address range of {size:,} bytes is free on the device", str(error), hint="a smaller reservation"
            ) from error
        self._sizes[address] = size
        return address

    def unreserve(self, address: int) -> None:
        size = self._sizes[address]
        self._clear(address, size)
        self.driver.free_address(address, size)
        del self._sizes[address]

    def map(self, address: int, runs: Sequence[Run], *, writable: bool) -> None:
        chunks = chunks_in(runs)
        size = len(chunks) * self.chunk
        self._drop_guard(address, size)
        for place, number in zip(self._places(address, size), chunks, strict=True):
            self._map_one(place, self._handle(number))
        self.driver.set_access(address, size, writable=writable)
        if writable:
            self.driver.fill_zero(address, size)

    def replace(self, address: int, run: Run) -> None:
        self._mend()
        first, count = run
        places = self._places(address, count * self.chunk)
        self._torn = {place: self._mapped[place] for place in places}
        self.driver.synchronize()
        try:
            self._unmap_places(places)
            for place, number in zip(places, range(first, first + count), strict=True):
                self._map_one(place, self._handles[number])
            self.driver.set_access(address, count * self.chunk, writable=True)
        except DriverError:
            with contextlib.suppress(DriverError):
                self._mend()
            raise
        self._torn = {}

    def _mend(self) -> None:
        """Map again what a failed replacement has unmapped; what cannot be now is tried by the next call."""
        for place, handle in list(self._torn.items()):
            if self._mapped.get(place) != handle:
                self._unmap_places([place])
                self._map_one(place, handle)
            self.driver.set_access(place, self.chunk, writable=False)
            del self._torn[place]

    def unmap(self, address: int, size: int) -> None:
        self._clear(address, size)
        if self.guard == "zero":
            # The guard is a courtesy to views that are alive: where it cannot be mapped, they trap.
            with contextlib.suppress(DriverError):
                self._map_guard(address, size)

    def protect(self, address: int, size: int, *, writable: bool) -> None:
        self._mend()
        if not writable:
            # A kernel that was started before may have still to write there.
            self.driver.synchronize()
        self.driver.set_access(address, size, writable=writable)

    def copy(self, address: int, chunk: int) -> None:
        self._mend()
        with self._scratch_over(self._handle(chunk)) as scratch:
            self.driver.synchronize()
            self.driver.copy(scratch, address, self.chunk)

    @contextlib.contextmanager
    def _scratch_over(self, handle: int) -> Generator[int]:
        """An address at which a chunk is mapped for a moment."""
        if self._scratch is None:
            self._scratch = self.driver.reserve(self.chunk)
        # Where the last use could not be unmapped, it is now, or this fails as well.
        self._leave_scratch()
        self.driver.map(self._scratch, self.chunk, handle)
        self._scratch_in_use = True
        try:
            self.driver.set_access(self._scratch, self.chunk, writable=True)
            yield self._scratch
        finally:
            self._leave_scratch()

    def _leave_scratch(self) -> None:
        if self._scratch_in_use and self._scratch is not None:
            self.driver.unmap(self._scratch, self.chunk)
            self._scratch_in_use = False

    def discard(self, run: Run) -> None:
        first, count = run
        for number in range(first, first + count):
            handle = self._handles.get(number)
            if handle is not None:
                self._discard_handle(handle)
                del self._handles[number]

    def _discard_handle(self, handle: int) -> None:
        if len(self._spare) < self._spare_limit:
            self._spare.append(handle)
        else:
            self.driver.release(handle)

    def populate(self, address: int, size: int) -> bool:
        # A handle has its memory, in the device's large pages, from the beginning.
        return True

    def physical(self) -> int:
        zeros = self._zeros is not None
        return (len(self._handles) + len(self._spare) + zeros) * self.chunk

    def calls(self) -> dict[str, int]:
        return dict(self.driver.calls)

    def buffer(self, address: int, size: int) -> object:
        return DeviceBuffer(address, size)

    def tensor(self, buffer: object, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        assert isinstance(buffer, DeviceBuffer)
        size = math.prod(shape) * dtype.itemsize
        place = buffer.address + offset
        return self.driver.tensor(place, size, buffer).view(dtype).view(tuple(shape))

    def close(self) -> None:
        # What is not mapped any more and has not been discarded: chunks that were held.
        for handle in self._handles.values():
            self.driver.release(handle)
        self._handles.clear()
        if self._zeros is not None:
            # Views of a closed pool go on reading zeros: the memory lives until they are unmapped.
            self.driver.release(self._zeros)
            self._zeros = None
        while self._spare:
            self.driver.release(self._spare.pop())
        if self._scratch is not None:
            self._leave_scratch()
            self.driver.free_address(self._scratch, self.chunk)
            self._scratch = None

    def _places(self, address: int, size: int) -> range:
        return range(address, address + size, self.chunk)

    def _handle(self, number: int) -> int:
        handle = self._handles.get(number)
        if handle is None:
            handle = self._handles[number] = self._spare.pop() if self._spare else self.driver.create(self.chunk)
        return handle

    def _map_one(self, place: int, handle: int) -> None:
        self.driver.map(place, self.chunk, handle)
        self._mapped[place] = handle

    def _clear(self, address: int, size: int) -> None:
        self._mend()
        self._drop_guard(address, size)
        places = [place for place in self._places_in(address, size) if place in self._mapped]
        if places:
            self.driver.synchronize()
            self._unmap_places(places)

    def _places_in(self, address: int, size: int) -> Iterable[int]:
        # A large range with little in it is searched from the other side.
        if size // self.chunk > len(self._mapped):
            return sorted(place for place in self._mapped if address <= place < address + size)
        return self._places(address, size)

    def _unmap_places(self, places: Iterable[int]) -> None:
        """Unmap chunks, neighbours with one call."""
        mapped = sorted(place for place in places if place in self._mapped)
        # A range begins at a multiple of the device's granularity, which need not be one of the chunk.
        offset = mapped[0] % self.chunk if mapped else 0
        for first, count in runs_of((place - offset) // self.chunk for place in mapped):
            start, size = first * self.chunk + offset, count * self.chunk
            self.driver.unmap(start, size)
            for place in self._places(start, size):
                del self._mapped[place]

    def _map_guard(self, address: int, size: int) -> None:
        zeros = self._zero_chunk()
        for place in self._places(address, size):
            self.driver.map(place, self.chunk, zeros)
            self._guarded.add(place)
        self.driver.set_access(address, size, writable=False)

    def _zero_chunk(self) -> int:
        if self._zeros is None:
            handle = self.driver.create(self.chunk)
            try:
                with self._scratch_over(handle) as scratch:
                    self.driver.fill_zero(scratch, self.chunk)
            except DriverError:
                self.driver.release(handle)
                raise
            self._zeros = handle
        return self._zeros

    def _drop_guard(self, address: int, size: int) -> None:
        guarded = [place for place in sorted(self._guarded) if address <= place < address + size]
        if guarded:
            self.driver.synchronize()
        for place in guarded:
            self.driver.unmap(place, self.chunk)
            self._guarded.discard(place)


class DeviceBuffer:
    """A range of device addresses; tensors over it keep it alive."""

    __slots__ = ("__weakref__", "address", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
