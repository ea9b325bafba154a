"""The commands ``superscaler …`` and ``compile-plan``: thin over :mod:`superscaler.api`.

Exit codes: 0 done, 1 the plan or the model is at fault (said why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """``superscaler``; ends the process with its exit code."""
    _end("superscaler", arguments)


def compile_plan_main(arguments: Sequence[str] | None = None) -> None:
    """``compile-plan``: the same as ``superscaler compile-plan``."""
    _end("compile-plan", arguments)


def _end(program: str, arguments: Sequence[str] | None) -> None:
    # Imported here, so that an interrupt while modules are read ends as plainly as a later one.
    try:
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal was closed, and nohup was not asked for
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        from superscaler.cli.app import compile_plan_app, superscaler_app
        from superscaler.cli.outcome import execute

        app = compile_plan_app() if program == "compile-plan" else superscaler_app()
        code = execute(app, arguments, program=program)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


__all__ = ["compile_plan_main", "main"]
