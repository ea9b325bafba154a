"""The contract between a pool and the memory it manages: what a backend must offer.

A *chunk* is the unit of physical memory; it has a number, chosen by the pool. A *run* is a row of consecutive chunks,
``(first, count)``. Addresses and sizes are bytes, and whole multiples of the chunk. A backend keeps no references and
no budget: that is the pool's business. A call that fails raises ``OSError`` and has changed nothing it can undo.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

Guard = Literal["trap", "zero"]
Run = tuple[int, int]


class Backend(Protocol):
    """Physical chunks and address ranges of one kind of memory."""

    name: str
    chunk: int
    guard: Guard
    capacity: int  # how many chunk numbers there are (not how much memory)
    alignment: int  # a range's first chunk number is a multiple of this

    def reserve(self, size: int, home: int) -> int:
        """The address of a fresh range with nothing mapped: an access meets the guard.

        What will be mapped there is, for the most part, the row of chunks from number ``home`` on, each in its place.
        """
        ...

    def unreserve(self, address: int) -> None:
        """Give a reserved range back, with whatever is mapped in it."""
        ...

    def map(self, address: int, runs: Sequence[Run], *, writable: bool) -> None:
        """Map chunks one after another from ``address`` on, where nothing is mapped."""
        ...

    def replace(self, address: int, run: Run) -> None:
        """Map one run of chunks, writable, in place of those mapped there; on failure those stay."""
        ...

    def unmap(self, address: int, size: int) -> None:
        """Put the guard in place of what is mapped; returns when no access can reach the chunks any more."""
        ...

    def protect(self, address: int, size: int, *, writable: bool) -> None:
        """Make mapped chunks read-only, or writable again."""
        ...

    def copy(self, address: int, chunk: int) -> None:
        """Fill an unmapped chunk with the content of the chunk mapped at ``address``."""
        ...

    def discard(self, run: Run) -> None:
        """Give the memory of unmapped chunks back to the system; mapped again, they never show their old content."""
        ...

    def populate(self, address: int, size: int) -> bool:
        """Have writable mapped chunks backed by memory before they are touched, in pages as large as can be.

        False where the system cannot, and pages come as they are touched.
        """
        ...

    def physical(self) -> int:
        """Bytes of physical memory in use, as the system (not our bookkeeping) reports them."""
        ...

    def calls(self) -> dict[str, int]:
        """How often each system or driver call was made."""
        ...

    def buffer(self, address: int, size: int) -> object:
        """An object over a range that tensors keep alive for as long as they live."""
        ...

    def tensor(self, buffer: object, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor over part of a buffer, without a copy; its storage ends where the tensor ends."""
        ...

    def close(self) -> None:
        """Give everything back that is not mapped or reserved any more; no further chunks."""
        ...


def runs_of(chunks: Iterable[int]) -> list[Run]:
    """Rows of consecutive numbers, in the order given: ``[3, 4, 5, 9] -> [(3, 3), (9, 1)]``."""
    runs: list[Run] = []
    first, count = -1, 0
    for chunk in chunks:
        if chunk == first + count and count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = chunk, 1
    if count:
        runs.append((first, count))
    return runs
