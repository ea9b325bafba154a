"""Which number a chunk gets: every range has a window of numbers of its own.

A range's chunk at index ``i`` is number ``window.first + i`` whenever it can be, so that neighbours in a range are
neighbours in the pool's file, and a range that grows stays one mapping however many ranges grow beside it. Windows
follow each other downwards, as the addresses do that Linux hands out: neighbouring ranges that are empty, or full, are
one mapping. A chunk that outlives its place at home (it is shared, and its range let go of it) is *away*: its number is
taken until it is freed, and a window is recycled only when none of its chunks is away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from superscaler.errors import OutOfMemory
from superscaler.runtime.memory.backend import Run, runs_of


@dataclass(slots=True)
class Window:
    """Chunk numbers ``[first, first + count)``; ``away`` of them are held by others; ``retired``: its range is gone."""

    first: int
    count: int
    away: int = 0
    retired: bool = False


class ChunkNumbers:
    """Hands out windows of chunk numbers below ``capacity``, each beginning at a multiple of ``alignment``."""

    def __init__(self, capacity: int, alignment: int = 1) -> None:
        self._alignment = alignment
        self._left = capacity // alignment * alignment
        self._free: dict[int, list[int]] = {}
        self._away: dict[int, Window] = {}

    def window(self, count: int) -> Window:
        """A window of so many numbers, none of them in use."""
        width = -(-count // self._alignment) * self._alignment
        recycled = self._free.get(width)
        if recycled:
            return Window(recycled.pop(), count)
        if width > self._left:
            raise OutOfMemory(
                "the pool has no more chunk numbers",
                f"{count:,} are asked for, {self._left:,} are left",
                hint="smaller reservations, or free the ranges that are no longer used",
            )
        self._left -= width
        return Window(self._left, count)

    def take(self, window: Window, indices: range, replaced: dict[int, int] | None = None) -> list[Run]:
        """Numbers for the chunks at ``indices``: those at home, or elsewhere where the one at home is in use.

        ``replaced`` is what is mapped at these indices now (index to number), if something is: it may be at home.
        """
        first = window.first
        if not window.away and replaced is None:
            return [(first + indices.start, len(indices))]
        held = replaced or {}
        homes = [first + index for index in indices]
        busy = {home for home in homes if home in self._away or held.get(home - first) == home}
        if not busy:
            return runs_of(homes)
        spare = iter(self._elsewhere(len(busy)))
        return runs_of(next(spare) if home in busy else home for home in homes)

    def _elsewhere(self, count: int) -> range:
        window = self.window(count)
        window.retired = True
        numbers = range(window.first, window.first + count)
        for number in numbers:
            self.leave(window, number)
        return numbers

    def leave(self, window: Window, chunk: int) -> None:
        """The chunk lives on, but no longer at home."""
        if window.first <= chunk < window.first + window.count and chunk not in self._away:
            self._away[chunk] = window
            window.away += 1

    def freed(self, chunks: Iterable[int]) -> None:
        """Nothing refers to these chunks, and their memory is gone: their numbers may be used again."""
        if not self._away:
            return
        for chunk in chunks:
            window = self._away.pop(chunk, None)
            if window is not None:
                window.away -= 1
                self._recycle(window)

    def retire(self, window: Window) -> None:
        """The window's range is gone."""
        window.retired = True
        self._recycle(window)

    def _recycle(self, window: Window) -> None:
        if window.retired and not window.away:
            width = -(-window.count // self._alignment) * self._alignment
            self._free.setdefault(width, []).append(window.first)
