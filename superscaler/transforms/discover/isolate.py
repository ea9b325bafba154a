"""Executing what may crash: in a child process, with a limit on its time, whose end is told from its result.

An op given inputs that it does not expect may do worse than raise: a kernel that reads out of bounds takes its process
with it. So each attempt is announced before it is made, and a child that dies says which attempt killed it.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Announce = Callable[[str], None]


@dataclass
class Attempts:
    """What must not be attempted again, and whom to tell of the next attempt."""

    refused: frozenset[str] = frozenset()
    announce: Announce = field(default=lambda name: None)

    def may(self, name: str) -> bool:
        """Announce an attempt; False if it killed a child before."""
        if name in self.refused:
            return False
        self.announce(name)
        return True


@dataclass(frozen=True)
class Ending:
    """``result`` of the work, or None: then ``attempt`` is the last one announced, and ``reason`` how the child ended,
    which was not by itself if it was ``late``."""

    result: bytes | None
    attempt: str | None
    reason: str = ""
    late: bool = False


def isolated(work: Callable[[Announce], bytes], seconds: float) -> Ending:
    """Run ``work`` in a child process and give what it returns. The child is gone when this returns."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _work(work, write)
    os.close(write)
    try:
        data, finished = _received(read, time.monotonic() + seconds)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    attempts, _, result = data.partition(b"\0")
    names = attempts.decode().splitlines()
    last = names[-1] if names else None
    if finished and b"\0" in data:
        return Ending(result, last)
    if not finished:
        return Ending(None, last, f"it ran for more than {seconds:g} s", late=True)
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
    return Ending(None, last, f"it ended the process that executed it ({how})")


def _work(work: Callable[[Announce], bytes], write: int) -> None:
    """The child: never returns, prints nothing, leaves no core file."""
    status = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)  # a forked child has none of its parent's threads
        result = work(lambda name: _send(write, name.encode() + b"\n"))
        _send(write, b"\0" + result)
        status = 0
    finally:
        os._exit(status)


def _send(write: int, data: bytes) -> None:
    while data:
        data = data[os.write(write, data) :]


def _received(read: int, deadline: float) -> tuple[bytes, bool]:
    """All that the child sent, and whether it ended before the deadline."""
    chunks: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([read], [], [], left)[0]:
            return b"".join(chunks), False
        chunk = os.read(read, 1 << 16)
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)
