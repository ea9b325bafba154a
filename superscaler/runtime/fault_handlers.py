"""What a process does at faults, kept across a library that sets handlers of its own and takes them away at its end.

``ray.shutdown`` leaves the system's: a process that crashes later would end without the word of Python's faulthandler,
or of whoever else had set a handler before.
"""

from __future__ import annotations

import ctypes
import signal

FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
_SIZE = 512  # bytes, more than any system's struct sigaction has


class FaultHandlers:
    """Those of the process: made before the library begins; :meth:`begun` when it has, :meth:`kept` before it ends."""

    def __init__(self) -> None:
        self._before, self._librarys = _installed(), functions()

    def begun(self) -> None:
        """The library has set its own."""
        self._librarys = functions()

    def kept(self) -> dict[signal.Signals, bytes]:
        """What to :func:`put_back`: what was there before the library, or was set by somebody else since."""
        now, librarys = functions(), self._librarys
        return {n: self._before[n] if now[n] == librarys[n] else action for n, action in _installed().items()}


def put_back(handlers: dict[signal.Signals, bytes]) -> None:
    """Install handlers of faults."""
    for number, action in handlers.items():
        ctypes.CDLL(None).sigaction(int(number), ctypes.create_string_buffer(action, _SIZE), None)


def functions() -> dict[signal.Signals, bytes]:
    """Where each handler is: what begins struct sigaction on every system; not all of the rest is ever written."""
    return {number: action[: ctypes.sizeof(ctypes.c_void_p)] for number, action in _installed().items()}


def _installed() -> dict[signal.Signals, bytes]:
    found: dict[signal.Signals, bytes] = {}
    for number in FAULTS:
        action = ctypes.create_string_buffer(_SIZE)
        ctypes.CDLL(None).sigaction(int(number), None, action)
        found[number] = action.raw
    return found
