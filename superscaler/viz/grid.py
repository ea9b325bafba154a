"""The rank x time grid as text: one row per device and lane, one column per step of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_LETTERS = {
    "forward": "F",
    "backward": "B",
    "weight": "W",
    "recompute": "R",
    "send": "→",
    "optimizer": "O",
    "reduce": "+",
}
_IDLE = "·"


@dataclass(frozen=True, slots=True)
class Cell:
    """One task: ``row`` (a label such as ``"device 0"``), its kind and number (or ""), and when it runs."""

    row: str
    kind: str
    number: int | str
    start: int
    end: int


def grid(cells: Sequence[Cell], *, width: int = 120, spell: Callable[[int], str] = str) -> str:
    """The cells as text of about ``width`` columns: the letter of a kind, then as much of the number as fits.

    ``spell`` writes the makespan below the last column.

    Rows come in order of first appearance. The scale is chosen so that the makespan fits; what is shorter than a column
    shows as its letter, the later one if two meet in one column.
    """
    if not cells:
        return ""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    margin = max(len(row) for row in rows) + 1
    end = max(cell.end for cell in cells)
    columns = max(10, min(width - margin, end))
    lines = [
        f"{row:<{margin}}" + _line((cell for cell in cells if cell.row == row), end, columns).rstrip() for row in rows
    ]
    return "\n".join([*lines, f"{'':<{margin}}0{spell(end):>{columns - 1}}"])


def _line(cells: Iterable[Cell], end: int, columns: int) -> str:
    line = [_IDLE] * columns
    for cell in cells:
        first, last = cell.start * columns // end, max(cell.end * columns // end, cell.start * columns // end + 1)
        text = (letter(cell.kind) + str(cell.number))[: last - first].ljust(last - first, "-")
        line[first:last] = text
    return "".join(line[:columns])


def letter(kind: str) -> str:
    """The letter that stands for a kind of task."""
    return _LETTERS.get(kind, kind[:1] or "?")
