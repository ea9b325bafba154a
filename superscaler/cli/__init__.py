"""The commands ``superscaler …`` and ``compile-plan``: thin over :mod:`superscaler.api`.

Exit codes: 0 done, 1 the plan or the model is at fault (said why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from superscaler.cli.app import compile_plan_app, superscaler_app
from superscaler.cli.outcome import execute


def main(arguments: Sequence[str] | None = None) -> None:
    """``superscaler``; ends the process with its exit code."""
    sys.exit(execute(superscaler_app(), arguments, program="superscaler"))


def compile_plan_main(arguments: Sequence[str] | None = None) -> None:
    """``compile-plan``: the same as ``superscaler compile-plan``."""
    sys.exit(execute(compile_plan_app(), arguments, program="compile-plan"))


__all__ = ["compile_plan_main", "main"]
