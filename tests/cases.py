"""Cases of parametrised tests."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case like others of its test that are run every time: this one is run with the slow suites."""
    return pytest.param(*values, marks=pytest.mark.slow)
