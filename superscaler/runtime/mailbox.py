"""Mailboxes: memory that processes of one machine share, with room for one message each.

A sender copies a message in, a receiver copies it out: no thread moves it, no system call is made unless somebody waits
for it, and whoever waits is woken by the sender itself. The memory has no name: it goes with the last process that has
it mapped.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable

from torch import Tensor

ROOM = 64 << 10  # bytes of a mailbox; it takes as much memory as is written to, in pages
_HEAD = 64  # bytes of its semaphore
LARGEST = ROOM - _HEAD  # bytes of a message
_LOOK = 1.0  # seconds between two looks at whether a sender is there
_libc = ctypes.CDLL(None, use_errno=True)


class _Until(ctypes.Structure):
    """``struct timespec``."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Shelf:
    """So many mailboxes in one piece of shared memory, as one process sees it.

    Made by the receiver of their messages (:meth:`make`), opened by senders (:meth:`open`).
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(descriptor, count * ROOM)
        self._first = ctypes.c_char.from_buffer(self._memory)  # holds the mapping
        self.address = ctypes.addressof(self._first)

    @classmethod
    def make(cls, count: int) -> tuple[Shelf, int]:
        """Empty mailboxes, and the descriptor by which others can open them while it is open. Raises ``OSError``."""
        descriptor = os.memfd_create("mailboxes", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, count * ROOM)
            shelf = cls(descriptor, count)
            for number in range(count):
                if _libc.sem_init(ctypes.c_void_p(shelf.address + number * ROOM), 1, 0):
                    raise OSError(ctypes.get_errno(), "sem_init")
        except BaseException:
            os.close(descriptor)
            raise
        return shelf, descriptor

    @classmethod
    def open(cls, process: int, descriptor: int, count: int) -> Shelf:
        """The mailboxes that another process made, by its descriptor of them. Raises ``OSError``."""
        found = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(found, count)
        finally:
            os.close(found)

    def mailbox(self, number: int) -> Mailbox:
        """One of them."""
        return Mailbox(self, number)


class Mailbox:
    """Room for one message, and a semaphore that counts it."""

    __slots__ = ("_data", "_semaphore", "_shelf")

    def __init__(self, shelf: Shelf, number: int) -> None:
        self._shelf = shelf  # stays mapped as long as anybody has a mailbox in it
        self._semaphore = ctypes.c_void_p(shelf.address + number * ROOM)
        self._data = shelf.address + number * ROOM + _HEAD

    def put(self, tensor: Tensor) -> None:
        """Copy a message in; the one before it has been taken. ``tensor``: contiguous, at most ``LARGEST`` bytes."""
        ctypes.memmove(self._data, tensor.data_ptr(), tensor.nbytes)
        _libc.sem_post(self._semaphore)

    def full(self) -> bool:
        """Whether a message is there."""
        count = ctypes.c_int()
        _libc.sem_getvalue(self._semaphore, ctypes.byref(count))
        return count.value > 0

    def take(self, tensor: Tensor, limit: float, gone: Callable[[], bool]) -> None:
        """Wait for the message, and copy it out.

        Raises :class:`TimeoutError` after ``limit`` seconds, :class:`ConnectionError` if its sender is ``gone``.
        """
        if _libc.sem_trywait(self._semaphore):
            self._wait(limit, gone)
        ctypes.memmove(tensor.data_ptr(), self._data, tensor.nbytes)

    def _wait(self, limit: float, gone: Callable[[], bool]) -> None:
        end = time.monotonic() + limit
        while True:
            until = time.time() + max(0.0, min(_LOOK, end - time.monotonic()))
            if not _libc.sem_timedwait(self._semaphore, ctypes.byref(_Until(int(until), int(until % 1 * 1e9)))):
                return
            if ctypes.get_errno() == errno.EINTR:
                continue
            left = gone()  # before the last look: what it sent before it ended is there
            if not _libc.sem_trywait(self._semaphore):
                return
            if left:
                raise ConnectionError("its sender has ended")
            if time.monotonic() >= end:
                raise TimeoutError
