"""Handlers of faults outlast a library's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CRASH = """
import faulthandler, os, signal
from superscaler.runtime.fault_handlers import FaultHandlers, put_back
{before}
handlers = FaultHandlers()
signal.signal(signal.SIGABRT, signal.SIG_IGN)  # a library sets its own,
handlers.begun()
{meanwhile}
kept = handlers.kept()
signal.signal(signal.SIGABRT, signal.SIG_DFL)  # and leaves none as it ends
put_back(kept)
os.abort()
"""
ENABLED = "faulthandler.enable()"
AGAIN = "faulthandler.disable(); faulthandler.enable()"


@pytest.mark.parametrize(
    ("before", "meanwhile", "told"),
    [
        pytest.param(ENABLED, "", True, id="set before"),
        pytest.param("", ENABLED, True, id="set meanwhile"),
        pytest.param(ENABLED, AGAIN, True, id="set again"),
        pytest.param("", "", False, id="never set"),
    ],
)
def test_a_crash_after_a_library_has_ended_is_told_as_it_would_be_without(
    before: str, meanwhile: str, told: bool
) -> None:
    script = CRASH.format(before=before, meanwhile=meanwhile)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ("Fatal Python error: Aborted" in found.stderr) == told, found.stderr
    assert found.returncode == -6
