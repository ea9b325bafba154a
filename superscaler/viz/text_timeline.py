"""A Timeline as text: a line per role, a column per slice of time."""

from __future__ import annotations

from superscaler.ir.check.fault import workers_text
from superscaler.scheduler.timeline import Timeline
from superscaler.viz.chart import legend_name, spell
from superscaler.viz.grid import Cell, grid, letter


def text_timeline(timeline: Timeline, *, width: int = 120) -> str:
    """The compute lanes over ``width`` columns: ``F3--`` for the forward of micro-batch 3, dots while idle."""
    cells = [
        Cell(
            workers_text(role.workers), span.kind, span.microbatch if span.microbatch >= 0 else "", span.start, span.end
        )
        for role in timeline.roles
        for span in role.spans
        if span.lane == "compute" and span.end > span.start
    ]
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    letters = ", ".join(f"{letter(kind)} {legend_name(kind, kinds)}" for kind in kinds)
    return f"{grid(cells, width=width, spell=spell)}\n{letters}"
