"""Putting a finished directory in the place of another one at once."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def replace_directory(new: Path, place: Path) -> None:
    """Make ``new`` what stands at ``place``; what stood there is at ``new`` afterwards, if there was anything.

    One system call (``renameat2`` with RENAME_EXCHANGE), so there is no moment without a whole directory at ``place``;
    where a file system lacks it, two renames.
    """
    if not place.exists():
        new.rename(place)
    elif not _swap(new, place):
        aside = new.with_name(new.name + ".old")
        place.rename(aside)
        new.rename(place)
        aside.rename(new)
    _flush(place.parent)


def _swap(one: Path, two: Path) -> bool:
    """Whether the file system could exchange the two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(two))


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
