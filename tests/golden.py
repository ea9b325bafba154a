"""Golden texts: what is printed, kept in ``tests/goldens``. ``UPDATE_GOLDENS=1 pytest …`` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"


def assert_golden(text: str, name: str) -> None:
    """``text`` is what the file ``name`` holds."""
    file = GOLDENS / name
    if os.environ.get("UPDATE_GOLDENS"):
        file.write_text(text)
    assert text == file.read_text(), f"{file}: UPDATE_GOLDENS=1 accepts the new text"
