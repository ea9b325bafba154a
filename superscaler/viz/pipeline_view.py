"""A pipeline's timetable for people: the grid with its certificate as text, a chart, or a picture."""

from __future__ import annotations

from pathlib import Path

from superscaler.scheduler.pipeline import COMPUTE, MOST_TASKS
from superscaler.scheduler.pipeline_timetable import PipelineTimetable, Slot
from superscaler.viz.chart import Bar, Chart, Row
from superscaler.viz.grid import Cell, grid
from superscaler.viz.png import write_png


def text(table: PipelineTimetable, *, width: int = 120) -> str:
    """The rank x time grid (compute only: sends are drawn by :func:`chart`) and the certificate below it.

    Of more tasks than are written out, the certificate alone.
    """
    known = f"{table.certificate}; bubble {table.bubble:.1%}"
    if table.problem.tasks > MOST_TASKS:
        return f"{table.problem.tasks} tasks, too many to draw\n{known}"
    cells = [
        Cell(f"device {slot['device']}", str(slot["kind"]), int(slot["microbatch"]), *_span(slot))
        for slot in table.slots
        if slot["lane"] == COMPUTE
    ]
    cells.sort(key=lambda cell: (int(cell.row.split()[1]), cell.start))
    return f"{grid(cells, width=width)}\n{known}"


def chart(table: PipelineTimetable, *, title: str = "") -> Chart:
    """One row per device and lane, in ticks."""
    found = table.slots
    lanes = sorted({(int(slot["device"]), slot["lane"] != COMPUTE, str(slot["lane"])) for slot in found})
    place = {(device, lane): number for number, (device, _, lane) in enumerate(lanes)}
    rows = tuple(Row(f"device {device}", lane, 0.45 if other else 1.0) for device, other, lane in lanes)
    bars = tuple(_bar(place[int(slot["device"]), str(slot["lane"])], slot) for slot in found)
    known = table.certificate
    subtitle = (
        f"{known.status}: {known.makespan} ticks, bound {known.bound} ({known.bound_source}), gap {known.gap:.2%}, "
        f"bubble {table.bubble:.2%}"
    )
    return Chart(title or _title(table), subtitle, rows, bars, float(known.makespan), unit="ticks")


def png(table: PipelineTimetable, path: Path | str, *, title: str = "") -> None:
    """Write the chart to ``path`` as a picture. Raises :class:`OSError`."""
    write_png(chart(table, title=title), path)


def _title(table: PipelineTimetable) -> str:
    problem = table.problem
    return f"{problem.stages} stages, {problem.microbatches} micro-batches, {problem.placement} placement"


def _bar(row: int, slot: Slot) -> Bar:
    start, end = _span(slot)
    detail = f"{slot['kind']} of stage {slot['stage']}, micro-batch {slot['microbatch']}: {start} to {end}"
    return Bar(row, float(start), float(end), str(slot["kind"]), str(slot["microbatch"]), detail)


def _span(slot: Slot) -> tuple[int, int]:
    return int(slot["start"]), int(slot["end"])
