"""Names for memory faults: which owner's memory a process died of touching.

A touch of freed, unmapped or read-only memory of ours is a segmentation fault. This handler says whose memory it was
on standard error, then steps aside: the previous handler (Python's faulthandler, say), or the system, ends the process
as it would have. It needs the interpreter, which a fault on a thread of ours or of torch's can get, since torch lets go
of the interpreter lock while it computes.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import signal
import threading
import weakref
from typing import Any, Protocol

from superscaler.runtime.memory.region import Region

_SA_SIGINFO = 0x4
_SI_CODE = 8  # where siginfo_t says how the signal came about: positive for a fault
_SI_ADDR = 16  # where siginfo_t has the faulting address, on 64-bit Linux


class Ranges(Protocol):
    """Who knows regions: a pool's address space."""

    regions: set[Region]
    chunk: int


class _SigAction(ctypes.Structure):
    # glibc's struct sigaction, alike on x86-64 and 64-bit ARM.
    _fields_ = (  # pyright: ignore[reportAssignmentType]
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class FaultReporter:
    """The process's handler: installed with the first pool that traps, knows every such pool."""

    def __init__(self) -> None:
        self._spaces: weakref.WeakSet[Any] = weakref.WeakSet()
        self._previous = _SigAction()
        self._callback = _HANDLER(self._on_fault)
        self._installed = False
        self._passed_on = False
        self._reporting: set[int] = set()
        self._libc = ctypes.CDLL(None)

    def watch(self, space: Ranges) -> None:
        """Report faults in this address space."""
        self._spaces.add(space)
        if not self._installed and platform.libc_ver()[0] == "glibc" and ctypes.sizeof(ctypes.c_void_p) == 8:
            self._installed = self._install()

    def _install(self) -> bool:
        action = _SigAction(handler=ctypes.cast(self._callback, ctypes.c_void_p).value, flags=_SA_SIGINFO)
        return not self._libc.sigaction(signal.SIGSEGV, ctypes.byref(action), ctypes.byref(self._previous))

    def _on_fault(self, number: int, info: int, _context: int) -> None:
        raised = ctypes.c_int.from_address(info + _SI_CODE).value <= 0
        if raised and faulthandler.is_enabled() and not self._passed_on:
            # faulthandler stood before us, has reported, and raises the signal again; the fault itself comes next.
            self._passed_on = True
            return
        thread = threading.get_ident()
        if thread not in self._reporting:
            self._reporting.add(thread)
            text = None if raised else self.explain(ctypes.c_uint64.from_address(info + _SI_ADDR).value)
            if text is not None:
                os.write(2, f"{text}\n".encode())
        # Only now, or a second thread's fault would end the process before the first is named. A fault in here comes
        # back as a second report of this thread, and ends the process as well.
        self._libc.sigaction(number, ctypes.byref(self._previous), None)
        if raised:
            signal.raise_signal(number)

    def explain(self, address: int) -> str | None:
        """Whose memory is at an address and why a touch of it faults; None if it is nobody's we know."""
        for space in list(self._spaces):
            for region in list(space.regions):
                if region.address <= address < region.address + region.size:
                    return explain_fault(region, address - region.address, space.chunk)
        return None


def explain_fault(region: Region, offset: int, chunk: int) -> str:
    """What is wrong with a touch of byte ``offset`` of a region."""
    where = f"byte {offset:,} of {region.name} ({region.account.pool!r})"
    if region.state != "open":
        return f"UseAfterFree: {where} was freed, and a tensor over it was used"
    if offset // chunk in region.readonly:
        return f"VirtualMemoryError: {where} is shared, hence read-only, and was written\n  try: writable(start, stop)"
    return f"VirtualMemoryError: {where} is not mapped ({len(region.chunks) * chunk:,} bytes are), and was used"


FAULTS = FaultReporter()
