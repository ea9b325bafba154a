"""Signals wait for what ends a job, and then take effect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from superscaler.runtime import signals
from superscaler.runtime.signals import ENDING, deferred, exit_when_terminated


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What signals do before a test, they do after it."""
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupt_comes_when_it_is_over() -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with deferred():
            with deferred():  # one within another
                signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("sent", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT, signal.SIGINT)])
def test_of_several_the_one_that_asks_for_most_counts(sent: tuple[signal.Signals, ...]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with exit_when_terminated():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library may do it

    def work() -> None:
        with deferred() as defer:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            defer()
            for number in sent:
                signal.raise_signal(number)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 128 + signal.SIGTERM


def test_what_is_ignored_or_handled_stays_so() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with exit_when_terminated(), deferred():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_an_error_is_not_hidden_where_nothing_was_sent() -> None:
    with pytest.raises(ZeroDivisionError), deferred():
        _ = 1 / 0


def test_what_hangs_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE", -1.0)
    reached: list[str] = []

    def work() -> None:
        with deferred():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not reached


def test_in_other_threads_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[object] = []

    def ends() -> None:
        with exit_when_terminated(), deferred() as defer:
            defer()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=ends)
    thread.start()
    thread.join()
    assert found == [before]
