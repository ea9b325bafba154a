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
import weakref
from collections.abc import Callable

from torch import Tensor

ROOM = 64 << 10  # bytes of a mailbox; it takes as much memory as is written to, in pages
_HEAD = 64  # bytes of its semaphore
LARGEST = ROOM - _HEAD  # bytes of a message
_LOOK = 1.0  # seconds between two looks at whether a sender is there
_libc = ctypes.CDLL(None, use_errno=True)
_quick = ctypes.PyDLL(None)  # keeps the interpreter's lock, for calls that never wait
_memory: Callable[[int, int, int], memoryview] = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_WRITABLE = 0x200  # PyBUF_WRITE


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
    """Room for one message, and a semaphore that counts it.

    A message of a plan mostly lies in the same memory in every run, so what is known of a tensor is kept: asking it is
    quick only where it was done just before. After a task, which leaves the caches to others, each question costs
    about 20 µs, as much as all the rest.
    """

    __slots__ = ("_at", "_known", "_message", "_room", "_semaphore", "_shelf")

    def __init__(self, shelf: Shelf, number: int) -> None:
        self._shelf = shelf  # stays mapped as long as anybody has a mailbox in it
        self._semaphore = ctypes.c_void_p(shelf.address + number * ROOM)
        self._at = shelf.address + number * ROOM + _HEAD
        self._known: Callable[[], Tensor | None] = lambda: None
        self._message = self._room = memoryview(b"")

    def fits(self, tensor: Tensor) -> bool:
        """Whether there is room for a message."""
        return self._known() is tensor or tensor.nbytes <= LARGEST

    def _get_to_know(self, tensor: Tensor) -> None:
        self._message = _memory(tensor.data_ptr() or self._at, tensor.nbytes, _WRITABLE)
        self._room = _memory(self._at, tensor.nbytes, _WRITABLE)
        self._known = weakref.ref(tensor)

    def put(self, tensor: Tensor) -> bool:
        """Copy a message in, in row-major order, if it :meth:`fits`; the one before it has been taken."""
        if self._known() is not tensor:
            if not self.fits(tensor):
                return False
            tensor = tensor.contiguous()
            self._get_to_know(tensor)
        self._room[:] = self._message
        _quick.sem_post(self._semaphore)
        return True

    def full(self) -> bool:
        """Whether a message is there."""
        count = ctypes.c_int()
        _libc.sem_getvalue(self._semaphore, ctypes.byref(count))
        return count.value > 0

    def take(self, tensor: Tensor, limit: float, gone: Callable[[], bool]) -> None:
        """Wait for the message, and copy it out into ``tensor``, which is contiguous.

        Raises :class:`TimeoutError` after ``limit`` seconds, :class:`ConnectionError` if its sender is ``gone``.
        """
        if _quick.sem_trywait(self._semaphore):
            self._wait(limit, gone)
        if self._known() is not tensor:
            self._get_to_know(tensor)
        self._message[:] = self._room

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
