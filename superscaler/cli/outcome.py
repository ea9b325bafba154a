"""How a command ends: its exit code, and one plain message instead of a traceback for a user's mistake."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from superscaler import errors
from superscaler.errors import SuperscalerError, UsageError

DONE, FAULT, USAGE, INTERRUPTED = 0, 1, 2, 130
_BadUsage: Any = typer.BadParameter.__bases__[0]  # typer's usage errors, of which it exports only this one


def execute(app: typer.Typer, arguments: Sequence[str] | None, *, program: str) -> int:
    """Run a command line; its exit code. Errors are printed to standard error as ``Kind: what`` with details below."""
    command = typer.main.get_command(app)
    _open_outputs()
    try:
        given = None if arguments is None else list(arguments)
        code = command.main(given, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except SuperscalerError as e:
        print(f"{kind_of(e)}: {e}", file=sys.stderr)
        return USAGE if isinstance(e, UsageError) else FAULT
    except _BadUsage as e:
        return _wrong_usage(e)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone (`superscaler ops | head`); nothing is left to say.
        _silence()
        return FAULT
    except OSError as e:
        print(f"SuperscalerError: {e}\n  try: a place that may be written, with enough space", file=sys.stderr)
        _silence()
        return FAULT
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else DONE


def _open_outputs() -> None:
    """Python has None for an output that was closed before it began (``superscaler ops >&-``).

    What an output's encoding cannot say becomes a question mark.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="replace")


def _silence() -> None:
    """What is still to be printed would fail at exit, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def kind_of(error: SuperscalerError) -> str:
    """The kind of an error in the exception tree of :mod:`superscaler.errors`."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


def _wrong_usage(error: Any) -> int:
    """An unknown option or command, a missing or senseless value: what, and how the command is used."""
    message = str(error.format_message())
    if not message:  # no command at all: the help has been asked for, in effect
        print(error.ctx.get_help())
        return USAGE
    close = list(getattr(error, "possibilities", None) or ())
    what = message.partition(" (Possible options")[0].partition(" Did you mean")[0]
    print(f"UsageError: {what}", file=sys.stderr)
    if close:
        print(f"  try: did you mean {close[0]!r}?", file=sys.stderr)
    elif "Did you mean" in message:
        print(f"  try: did you mean{message.rpartition('Did you mean')[2]}", file=sys.stderr)
    elif error.ctx is not None:
        print(f"  try: {error.ctx.command_path} --help", file=sys.stderr)
    return USAGE
