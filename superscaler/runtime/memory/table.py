"""The live table of memory by owner, which another process can read: ``superscaler memory``.

Each process with a pool keeps one small memfd of fixed rows, and writes its counters straight into it (about 100 ns
each), so the table is always current. Readers find it under ``/proc/PID/fd``; there is no file to clean up.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = "superscaler-table"
ROWS = 4096
_TEXT = 48
_ROW = 2 * _TEXT + 32
_CELLS = _ROW // 8
_LAYOUT = struct.Struct(f"={_TEXT}s{_TEXT}sqqqq")


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """What one owner has in one pool of one process, in bytes: address range, mapped part, shared part of that."""

    pid: int
    pool: str
    owner: str
    reserved: int
    mapped: int
    shared: int


class Account:
    """The counters of one owner in one pool."""

    __slots__ = ("_at", "_cells", "index", "owner", "pool")

    def __init__(self, pool: str, owner: str, index: int | None, cells: memoryview[int], at: int) -> None:
        self.pool = pool
        self.owner = owner
        self.index = index
        self._cells = cells
        self._at = at

    @property
    def reserved(self) -> int:
        return self._cells[self._at]

    @property
    def mapped(self) -> int:
        return self._cells[self._at + 1]

    @property
    def shared(self) -> int:
        return self._cells[self._at + 2]

    def add_reserved(self, size: int) -> None:
        self._cells[self._at] += size

    def add_mapped(self, size: int) -> None:
        self._cells[self._at + 1] += size

    def add_shared(self, size: int) -> None:
        self._cells[self._at + 2] += size

    def row(self) -> MemoryRow:
        """The counters as they are now."""
        return MemoryRow(os.getpid(), self.pool, self.owner, self.reserved, self.mapped, self.shared)

    def detach(self) -> None:
        """Go on counting, but no longer in the table."""
        cells = _private_cells()
        cells[0], cells[1], cells[2] = self.reserved, self.mapped, self.shared
        self.index, self._cells, self._at = None, cells, 0


def _private_cells() -> memoryview[int]:
    return memoryview(bytearray(24)).cast("q")


class MemoryTable:
    """This process's rows. Where all are taken, further owners are counted but not shown to other processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: mmap.mmap | None = None
        self._cells: memoryview[int] = _private_cells()
        self._free: list[int] = []

    def open(self, pool: str, owner: str) -> Account:
        """A fresh row, all zero."""
        with self._lock:
            file = self._file or self._create()
            if not self._free:
                return Account(pool, owner, None, _private_cells(), 0)
            index = self._free.pop()
            _LAYOUT.pack_into(file, index * _ROW, _text(pool), _text(owner), 0, 0, 0, os.getpid())
            return Account(pool, owner, index, self._cells, index * _CELLS + 2 * _TEXT // 8)

    def close(self, account: Account) -> None:
        """The owner is gone: its row disappears."""
        with self._lock:
            index = account.index
            if index is None or self._file is None:
                return
            account.detach()
            _LAYOUT.pack_into(self._file, index * _ROW, b"", b"", 0, 0, 0, 0)
            self._free.append(index)

    def _create(self) -> mmap.mmap:
        fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, ROWS * _ROW)
            # mmap keeps a duplicate of the descriptor, by which readers find the table.
            self._file = mmap.mmap(fd, ROWS * _ROW)
        finally:
            os.close(fd)
        self._cells = memoryview(self._file).cast("q")
        self._free = list(range(ROWS - 1, -1, -1))
        return self._file


_TABLE = MemoryTable()
# A forked child must not write into its parent's rows.
os.register_at_fork(after_in_child=_TABLE.__init__)


def open_account(pool: str, owner: str) -> Account:
    """A row in this process's table."""
    return _TABLE.open(pool, owner)


def close_account(account: Account) -> None:
    """Take a row out of this process's table."""
    _TABLE.close(account)


def _text(text: str) -> bytes:
    return text.encode(errors="replace")[: _TEXT - 1]


def live_table() -> list[MemoryRow]:
    """The rows of every process that may be looked at (one's own user's), by process, pool and owner."""
    rows: list[MemoryRow] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            rows += _rows_of(process)
    return sorted(rows, key=lambda row: (row.pid, row.pool, row.owner))


def _rows_of(process: Path) -> Iterator[MemoryRow]:
    try:
        for descriptor in os.scandir(process / "fd"):
            if f"memfd:{NAME}" in os.readlink(descriptor.path):
                content = Path(descriptor.path).read_bytes()
                yield from _parse(int(process.name), content)
    except OSError:
        # The process ended meanwhile, or belongs to another user.
        return


def _parse(pid: int, content: bytes) -> Iterator[MemoryRow]:
    for pool, owner, reserved, mapped, shared, whose in _LAYOUT.iter_unpack(content[: len(content) // _ROW * _ROW]):
        # A forked child has its parent's table open as well.
        if whose == pid:
            yield MemoryRow(pid, _decoded(pool), _decoded(owner), reserved, mapped, shared)


def _decoded(text: bytes) -> str:
    return text.rstrip(b"\0").decode(errors="replace")
