"""What commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from mimetypes import guess_type
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from superscaler.errors import SuperscalerError, UsageError
from superscaler.ir import writing as files

if TYPE_CHECKING:
    from rich.status import Status

PATIENCE = 2.0  # seconds after which a command says what it does


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line, to standard output."""
    print(json.dumps(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table as wide as the terminal, or as its content where the output is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if sys.stdout.isatty():
        Console().print(table)
        return
    wide = Console(width=10_000, file=sys.stdout)
    with wide.capture() as captured:
        wide.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextlib.contextmanager
def clean_stdout(wanted: bool) -> Generator[None]:
    """While ``wanted``, what libraries print goes to standard error: standard output is for the JSON alone."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def writing(path: object) -> Generator[None]:
    """A file that cannot be written is the user's matter: said without a traceback."""
    try:
        yield
    except OSError as e:
        raise SuperscalerError(
            f"cannot write {path}",
            f"{e.strerror or e}",
            hint="the name of a file, in a directory that exists, with enough space",
        ) from e


def refuse_place(path: Path | None, read: Path | None = None) -> None:
    """Raise :class:`SuperscalerError` if no file can be written there, or if it would replace ``read``: now, not once
    there is something to write."""
    if path is None:
        return
    with writing(path):
        files.refuse_place(path)
        if read is not None and path.exists() and read.exists() and path.samefile(read):
            raise UsageError(f"{path} is read, and would be written over", hint="another name")


def refuse_suffix(option: str, path: Path | None, suffix: str) -> None:
    """A file that is called what it is not would not be opened as what it is; one of no suffix is called nothing.
    Raises :class:`UsageError`."""
    if path is not None and path.suffix and guess_type(path.name)[0] != guess_type(suffix[1:] + suffix)[0]:
        raise UsageError(
            f"{option} {path}: what is written is {suffix[1:].upper()}", hint=f"{option} {path.with_suffix(suffix)}"
        )


class Progress:
    """Says what is being done once that takes more than two seconds; silent where standard error is no terminal."""

    def __init__(self) -> None:
        self.message = ""
        self._status: Status | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def __call__(self, message: str) -> None:
        with self._lock:
            self.message = message
            if self._status is not None:
                self._status.update(message)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._timer = threading.Timer(PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def _show(self) -> None:
        from rich.console import Console

        with self._lock:
            if self._timer is not None:
                self._status = Console(stderr=True).status(self.message or "working")
                self._status.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            if self._status is not None:
                self._status.stop()
                self._status = None
