"""A run of the tests ends, whatever a test does to its process, and says where and how.

pytest-timeout interrupts a test in Python. What does not come back from C is ended here, a little later, by a thread
that needs no interpreter. A process of pytest-xdist that ends is not replaced: a new one that is handed the last test
of a run would wait for another one for ever.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

GRACE = 60.0  # seconds that a test has beyond its limit to end by itself
_STDERR = pytest.StashKey[int]()
_ENDED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # what a process says last would go with the capture of its test
    config.stash[_ENDED] = []
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


def _watched(item: pytest.Item) -> Generator[None, Any, Any]:
    """One phase of a test, in a process that can tell of its end: Ray leaves none of the handlers that were there."""
    stderr = item.config.stash[_STDERR]
    faulthandler.disable()
    faulthandler.enable(stderr)
    limit = _limit(item)
    if limit:
        faulthandler.dump_traceback_later(limit + GRACE, file=stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _limit(item: pytest.Item) -> float:
    """The seconds that pytest-timeout gives a test; none without it."""
    if not item.config.pluginmanager.hasplugin("timeout"):
        return 0.0
    marker = item.get_closest_marker("timeout")
    given = item.config.getoption("timeout")
    if marker is not None:
        return float(marker.args[0])
    return float(item.config.getini("timeout") or 0.0) if given is None else float(given)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _watched(item))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    if error:
        node.config.stash[_ENDED].append(f"{node.gateway.id} {_how(node.gateway._io.popen)}")


def _how(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that nobody asked to."""
    try:
        status = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "can no longer be reached"
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that ended after its last test has failed none of them."""
    if session.config.stash[_ENDED] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for ended in config.stash[_ENDED]:
        terminalreporter.write_line(f"process {ended}; tests that were still to come have not been run")
