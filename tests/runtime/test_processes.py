"""Processes that measure together: what the first one prints, and an end to those that fail or take too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from superscaler.errors import RunError
from superscaler.runtime.processes import together

SCRIPT = """
import sys, time
number, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if what == "wait":
    time.sleep(60)
if what == "fail" and number == 1:
    sys.exit("no such figure")
print("something else")
print(f"{what} {number}")
"""


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measuring_script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_the_last_line_of_the_first_one() -> None:
    assert together("measuring_script", 2, ["found"], limit=30, doing="measuring") == b"found 0"


def test_one_that_fails_is_named_by_what_it_said() -> None:
    with pytest.raises(RunError, match=r"measuring failed[\s\S]*no such figure"):
        together("measuring_script", 2, ["fail"], limit=30, doing="measuring")


def test_an_end_to_all_of_them() -> None:
    with pytest.raises(RunError, match=r"measuring took more than 0\.5 s"):
        together("measuring_script", 2, ["wait"], limit=0.5, doing="measuring")
