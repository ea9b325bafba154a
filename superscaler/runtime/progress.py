"""Progress: which item every worker of this machine has begun last, in a few bytes that all of them see.

A worker that dies cannot be asked any more; what it wrote here can still be read.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

_BYTES = 8


class Progress:
    """One integer per worker, in a small mapped file. The file's name goes away once all have opened it."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._mapped = mapped
        self.numbers = memoryview(mapped).cast("q")

    @staticmethod
    def create(workers: int) -> Progress:
        """A new file, -1 for every worker."""
        descriptor, name = tempfile.mkstemp(prefix="superscaler-progress-")
        try:
            os.write(descriptor, (-1).to_bytes(_BYTES, "little", signed=True) * workers)
            return Progress(Path(name), mmap.mmap(descriptor, workers * _BYTES))
        finally:
            os.close(descriptor)

    @staticmethod
    def open(path: Path, workers: int) -> Progress:
        """The file that another process made."""
        with path.open("r+b") as file:
            return Progress(path, mmap.mmap(file.fileno(), workers * _BYTES))

    def of(self, worker: int) -> int:
        """The item that a worker has begun last; -1 before the first."""
        return self.numbers[worker]

    def unlink(self) -> None:
        """Remove the file's name; those who have opened it go on."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the file and unmap it here."""
        self.unlink()
        self.numbers.release()
        self._mapped.close()
