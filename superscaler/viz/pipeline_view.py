"""A pipeline's timetable for people: the grid with its certificate as text, or a picture."""

from __future__ import annotations

from pathlib import Path

from superscaler.scheduler.certified import PipelineTimetable
from superscaler.scheduler.pipeline import COMPUTE
from superscaler.scheduler.playground import Slot, slots
from superscaler.viz.gantt import Bar, draw
from superscaler.viz.grid import Cell, grid


def text(table: PipelineTimetable, *, width: int = 120) -> str:
    """The rank x time grid (compute only: sends are drawn by :func:`png`) and the certificate below it."""
    cells = [
        Cell(f"device {slot['device']}", str(slot["kind"]), int(slot["microbatch"]), *_span(slot))
        for slot in slots(table)
        if slot["lane"] == COMPUTE
    ]
    cells.sort(key=lambda cell: (int(cell.row.split()[1]), cell.start))
    return f"{grid(cells, width=width)}\n{table.certificate}; bubble {table.bubble:.1%}"


def png(table: PipelineTimetable, path: Path | str) -> None:
    """Write a Gantt chart with a row per device and lane to ``path``."""
    rows: dict[tuple[int, str], list[Bar]] = {}
    for slot in slots(table):
        place = int(slot["device"]), "a" if slot["lane"] == COMPUTE else str(slot["lane"])
        label = "" if slot["kind"] == "send" else str(slot["microbatch"])
        rows.setdefault(place, []).append((int(slot["start"]), int(slot["end"]), label, str(slot["kind"])))
    named = [(f"device {d}" if lane == "a" else lane, rows[d, lane]) for d, lane in sorted(rows)]
    draw(named, path, title=str(table.certificate), unit="ticks")


def _span(slot: Slot) -> tuple[int, int]:
    return int(slot["start"]), int(slot["end"])
