"""No test can keep a run of the tests from ending, or end its process without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = """
    from tests import endings
    endings.GRACE = 1.0
    pytest_plugins = ["tests.endings"]
"""
OTHERS = """
    import pytest

    @pytest.mark.parametrize("number", range(4))
    def test_passes(number):
        pass
"""
LAST = """
    import ctypes, os, signal

    def test_takes_handlers_away_as_ray_does():
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def test_last():
        BODY
"""
STUCK = "lock, c = bytes(64), ctypes.PyDLL(None); c.pthread_mutex_lock(lock); c.pthread_mutex_lock(lock)"


def run_of_tests(place: Path, **files: str) -> tuple[int, str]:
    """What ``make test`` would do if the tests were these files: its exit status, and what it says."""
    for name, text in files.items():
        (place / f"{name}.py").write_text("\n".join(line[4:] for line in text.splitlines()))
    (place / "pytest.ini").write_text("[pytest]\ntimeout = 2\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (place / "said").open("w+") as said:
        found = subprocess.run(command, cwd=place, env=environment, timeout=120, check=False, stdout=said, stderr=said)
    return found.returncode, (place / "said").read_text()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("os._exit(3)", ["process gw", "ended with exit status 3", "crashed while running 'test_last.py::test_last'"]),
        ("os.abort()", ["was ended by SIGABRT", "Fatal Python error: Aborted", "in test_last"]),
        (STUCK, ["Timeout (0:00:03)!", "in test_last", "'test_last.py::test_last'"]),
    ],
)
def test_a_run_ends_and_says_where_and_how(tmp_path: Path, body: str, told: list[str]) -> None:
    code, said = run_of_tests(tmp_path, conftest=SETTINGS, test_others=OTHERS, test_last=LAST.replace("BODY", body))
    assert code == 1
    assert [words for words in told if words not in said] == []
    assert "1 failed, 5 passed" in said


def test_a_process_that_ends_after_its_last_test_fails_the_run(tmp_path: Path) -> None:
    ends = """
    import os

    def pytest_sessionfinish(session):
        if hasattr(session.config, "workerinput"):
            os._exit(0)
"""
    code, said = run_of_tests(tmp_path, conftest=SETTINGS + ends, test_others=OTHERS)
    assert code == 1
    assert "ended with exit status 0" in said
