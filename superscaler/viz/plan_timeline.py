"""A plan's Timeline as a chart: one row per worker and lane."""

from __future__ import annotations

from superscaler.ir.check.fault import workers_text
from superscaler.ir.summary import bytes_text
from superscaler.scheduler.timeline import RoleTimeline, Span, Timeline
from superscaler.viz.chart import Bar, Chart, Curve, Row, lanes_of, spell

MOST = 32  # workers that have rows of their own; beyond that, workers of one role share them


def chart(timeline: Timeline, *, title: str = "") -> Chart:
    """The chart of a simulated entry. Workers of one role share rows if there are more than 32 workers."""
    rows: list[Row] = []
    bars: list[Bar] = []
    for group, role in _groups(timeline):
        lanes = lanes_of(span.lane for span in role.spans)
        place = {lane: len(rows) + i for i, lane in enumerate(lanes)}
        rows += [Row(group, lane, 1.0 if lane == "compute" else 0.45) for lane in lanes]
        bars += [_bar(place[span.lane], span) for span in role.spans if span.end > span.start]
    subtitle = (
        f"{timeline.entry}: {spell(timeline.makespan)} a step, bubble {timeline.bubble:.1%}, "
        f"peak {bytes_text(timeline.peak)}, {timeline.workers} workers in {len(timeline.roles)} roles"
    )
    curves = tuple(_curve(timeline, role) for role in timeline.roles)
    return Chart(title, subtitle, tuple(rows), tuple(bars), timeline.makespan, curves)


def _groups(timeline: Timeline) -> list[tuple[str, RoleTimeline]]:
    if timeline.workers > MOST:
        return [(workers_text(role.workers), role) for role in timeline.roles]
    found = {worker: role for role in timeline.roles for worker in role.workers}
    return [(f"worker {worker}", found[worker]) for worker in sorted(found)]


def _bar(row: int, span: Span) -> Bar:
    label = str(span.microbatch) if span.microbatch >= 0 else ""
    which = f", micro-batch {span.microbatch}" if span.microbatch >= 0 else ""
    detail = f"{span.name}{which}: {spell(span.start)} to {spell(span.end)} ({spell(span.end - span.start)})"
    return Bar(row, span.start, span.end, span.kind, label, detail, span.critical)


def _curve(timeline: Timeline, role: RoleTimeline) -> Curve:
    points = [(float(level.time), float(level.bytes)) for level in role.memory]
    points.append((float(timeline.makespan), points[-1][1] if points else 0.0))
    return Curve(workers_text(role.workers), tuple(points))
