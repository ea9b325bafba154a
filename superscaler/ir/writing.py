"""Files that appear whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path


def refuse_place(target: Path) -> None:
    """Raise the ``OSError`` that writing a file would, as far as that is known before there is anything to write."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        return
    refuse_directory(Path(os.path.realpath(target)).parent)


def refuse_directory(directory: Path) -> None:
    """Raise the ``OSError`` that making a file in a directory would."""
    if not directory.is_dir():
        code = errno.ENOTDIR if directory.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(directory))
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def write_at_once(target: Path, data: bytes) -> None:
    """Write a file that appears whole, or not at all. Raises ``OSError``; what was there before is then there still.

    A link stays, and what it leads to is replaced; a device or a pipe is written to.
    """
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    target = Path(os.path.realpath(target))
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
