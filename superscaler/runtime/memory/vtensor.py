"""A vTensor: one address range whose mapped prefix grows and shrinks while its addresses stay.

The term and the idea (reserve virtually, map physically on demand, share chunks) follow vTensor, arXiv 2407.15309 §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from superscaler.errors import OutOfMemory, UsageError, UseAfterFree, VirtualMemoryError
from superscaler.ir.argument import shown
from superscaler.runtime.memory.region import Region
from superscaler.runtime.memory.sizes import bytes_of, of_kind, size_of
from superscaler.runtime.memory.space import AddressSpace
from superscaler.runtime.memory.table import Account

if TYPE_CHECKING:
    import torch


class VTensor:
    """A reserved range of which the first ``size`` bytes are in use and the first ``mapped`` bytes (chunks) are memory.

    Made by :meth:`Pool.reserve`. One thread at a time changes a vTensor; others may share and hold what is in use of
    it, and have vTensors of their own in the same pool. Dropped without ``free``, it lives on as long as a tensor over
    it does.
    """

    __slots__ = ("__weakref__", "_buffer", "_region", "_size", "_space")

    def __init__(self, space: AddressSpace, region: Region, buffer: Any) -> None:
        self._space = space
        self._region = region
        self._buffer = buffer
        self._size = 0

    @property
    def space(self) -> AddressSpace:
        """The pool's address ranges, of which this is one."""
        return self._space

    @property
    def region(self) -> Region:
        """The mechanism underneath; raises :class:`UseAfterFree` once freed."""
        return self._open()

    @property
    def name(self) -> str:
        """Its owner and number, as errors report it."""
        return self._region.name

    @property
    def address(self) -> int:
        """Where the range begins; it never changes."""
        return self._region.address

    @property
    def size(self) -> int:
        """Bytes in use: the sum of what it was extended by, or what it was trimmed to."""
        return self._size

    @property
    def mapped(self) -> int:
        """Bytes of the mapped prefix: ``size`` rounded up to chunks. What was mapped ahead is not in it yet."""
        return self._region.used * self._space.chunk

    @property
    def reserved(self) -> int:
        """Bytes of the address range."""
        return self._region.size

    def extend(self, nbytes: int) -> None:
        """Grow by ``nbytes``: zeros where chunks are new. Raises :class:`OutOfMemory` and leaves it as it was."""
        region = self._open()
        size = self._size + self._checked(nbytes)
        need = -(-size // self._space.chunk)
        if need > region.used:
            if need > region.count:
                raise OutOfMemory(
                    f"{region.name}: its address range is full",
                    f"{size:,} bytes are asked for, {region.size:,} are reserved",
                    hint="reserve more: address range costs no memory",
                )
            self._space.map_prefix(region, need)
        self._size = size

    def extend_ahead(self, nbytes: int) -> None:
        """Ask for ``nbytes`` beyond ``size`` to be mapped in the background, so that extending finds them there.

        Only a request: it takes no memory that others hold, and says nothing when there is none.
        """
        region = self._open()
        need = -(-(self._size + self._checked(nbytes)) // self._space.chunk)
        if need > region.prefix:
            self._space.mapper.extend_ahead(region, min(need, region.count))

    def populate(self) -> bool:
        """Have what is mapped backed by memory now, in huge pages where the system can, instead of when it is touched.

        Returns whether it could. First touches, and giving the memory back, are many times faster then.
        """
        return self._space.populate(self._open())

    def trim(self, size: int) -> None:
        """Shrink to ``size`` bytes; the chunks behind it go back, and views of them meet the guard.

        Raises :class:`UsageError` for more bytes than it has.
        """
        region = self._open()
        size = bytes_of(size, region.name)
        if not 0 <= size <= self._size:
            raise UsageError(f"{region.name}: trim to {size:,} bytes", f"it has {self._size:,}", hint="extend grows")
        self._space.cut_prefix(region, -(-size // self._space.chunk))
        self._size = size

    def free(self) -> None:
        """Give back all memory and, once no tensor over it is alive, the addresses. Views meet the guard."""
        region = self._open()
        self._space.free(region)
        self._size = 0
        self._buffer = None

    def share(self, source: VTensor | Chunks, nbytes: int, start: int = 0) -> None:
        """Map the source's bytes ``[start, start + nbytes)`` behind what is mapped here: the same chunks, no copy.

        Both sides are then read-only there until :meth:`writable`. Chunks are shared whole: ``start`` and the size of
        this vTensor must be multiples of the chunk, and the last chunk comes with what the source has in it. Raises
        :class:`UsageError` for another pool's or another kind of source, :class:`VirtualMemoryError` where it has not
        that much mapped, :class:`OutOfMemory` where the address range is full; nothing changes then.
        """
        region, chunk = self._open(), self._space.chunk
        self._of_this_pool(source)
        there = len(source.chunks) if isinstance(source, Chunks) else source.region.used
        nbytes, start = self._checked(nbytes), bytes_of(start, region.name)
        if nbytes == 0:
            return
        if start % chunk or self._size % chunk:
            raise UsageError(
                f"{region.name}: share at {start:,} behind {self._size:,} bytes",
                f"both must be multiples of {chunk:,}",
                hint="whole chunks",
            )
        at, lo, hi = self._size // chunk, start // chunk, -(-(start + nbytes) // chunk)
        if at + hi - lo > region.count:
            raise OutOfMemory(f"{region.name}: its address range is full", hint="reserve more")
        if not 0 <= lo <= hi <= there:
            raise VirtualMemoryError(
                f"{region.name}: share of bytes [{start:,}, {start + nbytes:,}) of {source!r}",
                "not all of it is mapped",
                hint="a part that is mapped",
            )
        if isinstance(source, Chunks):
            self._space.share_held(region, at, source.chunks[lo:hi], source.account)
        else:
            self._space.share(region, at, source.region, lo, hi)
        self._size += nbytes

    def share_chunks(self, parts: Sequence[Chunks]) -> None:
        """:meth:`share` several held pieces, one behind the other, with as few system calls as they have runs."""
        region, chunk = self._open(), self._space.chunk
        of_kind(parts, Sequence, f"{region.name}: what is shared", "a list of what hold(...) returned")
        for part in parts:
            of_kind(part, Chunks, f"{region.name}: a part of what is shared", "what hold(...) returned")
            self._of_this_pool(part)
        chunks = [number for part in parts for number in part.chunks]
        if self._size % chunk:
            raise UsageError(
                f"{region.name}: share behind {self._size:,} bytes",
                f"not a multiple of {chunk:,}",
                hint="whole chunks before it",
            )
        at = self._size // chunk
        if at + len(chunks) > region.count:
            raise OutOfMemory(f"{region.name}: its address range is full", hint="reserve more")
        if chunks:
            self._space.share_held(region, at, chunks, parts[0].account)
            self._size += len(chunks) * chunk

    def hold(self, start: int, stop: int) -> Chunks:
        """A reference to the chunks of bytes ``[start, stop)`` that outlives this vTensor and needs no addresses.

        Raises :class:`VirtualMemoryError` where not all of them are mapped.
        """
        region = self._open()
        lo, hi = self._indices(start, stop)
        return Chunks(self._space, region.account, self._space.hold(region, lo, hi))

    def writable(self, start: int, stop: int) -> None:
        """Make the bytes ``[start, stop)`` writable, copying the chunks of them that are shared (copy-on-write).

        Raises :class:`OutOfMemory` when there is no memory for the copies; no content changes then.
        """
        region = self._open()
        lo, hi = self._indices(start, stop)
        if region.readonly:
            self._space.make_writable(region, lo, hi)

    def is_writable(self, start: int, stop: int) -> bool:
        """Whether all of the bytes ``[start, stop)`` may be written."""
        region = self._open()
        lo, hi = self._indices(start, stop)
        return region.readonly.isdisjoint(range(lo, hi))

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
        """A tensor over the mapped prefix from byte ``offset`` on: no copy, and it keeps the range alive.

        Raises :class:`VirtualMemoryError` where it would reach beyond what is mapped.
        """
        region = self._open()
        nbytes = size_of(shape, dtype, region.name)
        shape, offset = tuple(map(index, shape)), bytes_of(offset, region.name)
        if offset < 0 or offset % dtype.itemsize or (shape and min(shape) < 0):
            raise UsageError(
                f"{region.name}: a tensor of shape {tuple(shape)} at offset {offset}",
                f"sizes are not negative, and the offset is a multiple of the {dtype.itemsize} bytes of {dtype}",
                hint="sizes and an offset that are",
            )
        if offset + nbytes > self.mapped:
            raise VirtualMemoryError(
                f"{region.name}: a view beyond what is mapped",
                f"bytes [{offset:,}, {offset + nbytes:,}) of shape {tuple(shape)}, {dtype}; {self.mapped:,} are mapped",
                hint="extend first",
            )
        return self._space.backend.tensor(self._buffer, offset, shape, dtype)

    def _of_this_pool(self, source: VTensor | Chunks) -> None:
        space = getattr(source, "space", None)
        if not isinstance(space, AddressSpace):
            raise UsageError(f"{self._region.name}: share of {shown(source)}", hint="a vTensor, or what it holds")
        if space is not self._space:
            raise UsageError(
                f"{self._region.name} of pool {self._space.name!r}: share of {source!r}",
                f"its chunks are those of pool {space.name!r}",
                hint="one pool for what is to be shared, or a copy",
            )

    def _open(self) -> Region:
        if self._buffer is None:
            raise UseAfterFree(f"{self._region.name} was freed", hint="reserve another one")
        if self._space.state != "open":
            self._space.check_open(self._region.name)
        return self._region

    def _checked(self, nbytes: int) -> int:
        nbytes = bytes_of(nbytes, self._region.name)
        if nbytes < 0:
            raise UsageError(f"{self._region.name}: {nbytes} bytes", hint="a number of bytes that is not negative")
        return nbytes

    def _indices(self, start: int, stop: int) -> tuple[int, int]:
        start, stop = bytes_of(start, self._region.name), bytes_of(stop, self._region.name)
        if not 0 <= start <= stop <= self.mapped:
            raise VirtualMemoryError(
                f"{self._region.name}: bytes [{start:,}, {stop:,}) are not all mapped",
                f"{self.mapped:,} are mapped",
                hint="extend first",
            )
        return start // self._space.chunk, -(-stop // self._space.chunk)

    def __repr__(self) -> str:
        state = (
            "freed" if self._buffer is None else f"{self._size:,} of {self.reserved:,} bytes, {self.mapped:,} mapped"
        )
        return f"VTensor({self._region.name}: {state})"


class Chunks:
    """References to chunks without an address: they stay, unchanged, until this is freed or dropped.

    Made by :meth:`VTensor.hold`; mapped again by :meth:`VTensor.share`.
    """

    __slots__ = ("__weakref__", "account", "chunks", "space")

    def __init__(self, space: AddressSpace, account: Account, chunks: list[int]) -> None:
        self.space = space
        self.account = account
        self.chunks = chunks

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self.chunks) * self.space.chunk

    @property
    def shared(self) -> bool:
        """Whether somebody else refers to any of the chunks, too."""
        return any(self.space.store.is_shared(chunk) for chunk in self.chunks)

    def free(self) -> None:
        """Let go of the chunks; those nobody else refers to go back to the system."""
        chunks, self.chunks = self.chunks, []
        if chunks:
            self.space.drop(self.account, chunks)

    def __repr__(self) -> str:
        return f"Chunks({self.account.owner}: {self.size:,} bytes)"

    def __del__(self) -> None:
        if self.chunks:
            self.space.drop_later(self.account, self.chunks)
