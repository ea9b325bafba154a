"""A Timeline as text: a line per role, a column per slice of time."""

from __future__ import annotations

from superscaler.ir.check.fault import workers_text
from superscaler.scheduler.timeline import RoleTimeline, Span, Timeline
from superscaler.viz.chart import spell

LETTERS = {
    "forward": "F", "backward": "B", "weight": "W", "recompute": "R", "reduce": "+", "optimizer": "O",
    "collective": "C", "prologue": "P", "per_step": "P",
}  # fmt: skip
IDLE, BUSY = "·", "─"


def text_timeline(timeline: Timeline, *, width: int = 96) -> str:
    """The compute lanes over ``width`` columns: ``F3`` and a line for the forward of micro-batch 3, dots while idle."""
    names = [workers_text(role.workers) for role in timeline.roles]
    left = max((len(name) for name in names), default=0)
    lines = [
        f"{name:<{left}}  {_line(role, timeline.makespan, width)}"
        for name, role in zip(names, timeline.roles, strict=True)
    ]
    lines.append(f"{'':<{left}}  0{spell(timeline.makespan):>{width - 1}}")
    used = dict.fromkeys(span.kind for role in timeline.roles for span in role.spans if span.lane == "compute")
    letters = ", ".join(f"{LETTERS[kind]} {kind}" for kind in LETTERS if kind in used and LETTERS[kind] != "P")
    return "\n".join([*lines, f"{'':<{left}}  {letters}"])


def _line(role: RoleTimeline, makespan: int, width: int) -> str:
    line = [IDLE] * width
    for span in role.spans:
        if span.lane == "compute" and makespan:
            first, last = span.start * width // makespan, span.end * width // makespan
            if last == first and first < width and line[first] == IDLE:
                last += 1  # too short for a column, but not to be overlooked
            line[first:last] = _mark(span, last - first)
    return "".join(line)


def _mark(span: Span, columns: int) -> str:
    number = str(span.microbatch) if span.microbatch >= 0 else ""
    mark = LETTERS.get(span.kind, "?") + number
    if columns < len(mark):
        mark = LETTERS.get(span.kind, "?")
    return (mark + BUSY * columns)[:columns]
