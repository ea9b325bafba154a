"""Signals that ask a process to end, while it ends what it has started."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 60.0  # seconds; what takes longer hangs, and a signal gets through again


@contextlib.contextmanager
def deferred() -> Generator[Callable[[], None]]:
    """What is sent meanwhile takes effect when this is over: one signal of them all, SIGTERM if it is among them.

    Yields what defers them again where a library may have set handlers of its own. Only the main thread is ever
    interrupted by a signal: in any other one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[signal.Signals] = []
    limit = time.monotonic() + PATIENCE

    def remember(number: int, _: FrameType | None) -> None:
        arrived.append(signal.Signals(number))
        if time.monotonic() > limit:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    def defer() -> None:
        for number in before:
            signal.signal(number, remember)

    handlers = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        with contextlib.ExitStack() as restored:
            for number, handler in before.items():
                restored.callback(signal.signal, number, handler)
            defer()
            yield defer
    finally:
        if arrived:
            signal.raise_signal(max(arrived))


@contextlib.contextmanager
def exit_when_terminated() -> Generator[None]:
    """From now on SIGTERM raises SystemExit, if it would have ended the process at once: what was started ends first.

    Handlers that a library sets meanwhile are gone afterwards.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    if handler is signal.SIG_DFL:
        handler = _exit
        signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, handler)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
