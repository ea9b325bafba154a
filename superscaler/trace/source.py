"""Where in the user's code something happened: the innermost line that is neither torch's nor ours."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import torch

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = Path(__file__).parents[1]
_OURS = (str(_PACKAGE / "trace"), str(_PACKAGE / "runtime"))


@lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Whether ``file`` is code of a model: not of torch, of this package, or of the interpreter."""
    return not (file.startswith((_TORCH, *_OURS, "<")) or "/contextlib.py" in file)


def _innermost(frames: Iterable[tuple[str, int]]) -> str:
    for file, line in frames:
        if is_users(file):
            return f"{file}:{line}"
    return ""


def line_of_error(trace: TracebackType | None) -> str:
    """``file:line`` of the innermost user frame that an exception passed through."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(trace)]
    return _innermost(reversed(frames))


def current_line() -> str:
    """``file:line`` of the innermost user frame now running."""
    frame = inspect.currentframe()
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def shown(line: str) -> str:
    """``file:line: text of that line``, for an error message."""
    file, _, number = line.rpartition(":")
    try:
        text = Path(file).read_text().splitlines()[int(number) - 1].strip()
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        return line
    return f"{line}: {text}"
