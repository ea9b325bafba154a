"""The heap of a process in which workers run on CPUs: what an op frees stays for the next one.

glibc maps large tensors anew each time and unmaps them when they are freed, so every op writes to fresh pages, which
the kernel must first find and clear: several times the cost of the op itself where that is pointwise. The next run
needs the same memory again. (On GPUs, torch's allocator keeps it likewise.)
"""

from __future__ import annotations

import ctypes
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # malloc.h
_NEVER = -1
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}  # where glibc's defaults adapt to
_users = 0


def glibc() -> Any:
    """The C library if it is glibc, else None."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def keep() -> None:
    """From now on the heap grows and does not shrink, until :func:`give_back` has been called as often."""
    global _users
    _users += 1
    libc = glibc()
    if _users == 1 and libc is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def give_back() -> None:
    """Undoes :func:`keep`: what is free goes back to the system."""
    global _users
    _users -= 1
    libc = glibc()
    if _users == 0 and libc is not None:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
