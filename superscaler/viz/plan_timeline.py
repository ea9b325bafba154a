"""A plan's Timeline as a chart: one row per worker and lane."""

from __future__ import annotations

from superscaler.ir.check.fault import workers_text
from superscaler.ir.summary import bytes_text
from superscaler.scheduler.timeline import RoleTimeline, Span, Timeline
from superscaler.viz.chart import Bar, Chart, Curve, Row, lanes_of, spell

MOST = 32  # workers that have rows of their own; beyond that, workers of one role share them
MEASURED = "measured"


def chart(timeline: Timeline, *, title: str = "", beside: Timeline | None = None) -> Chart:
    """The chart of a simulated entry. Workers of one role share rows if there are more than 32 workers.

    ``beside``: the same entry as it was measured, drawn below each worker's predicted rows.
    """
    rows: list[Row] = []
    bars: list[Bar] = []
    for group, worker, role in groups(timeline):
        _add(rows, bars, group, role, "")
        if beside is not None:
            _add(rows, bars, group, beside.role_of(worker), MEASURED)
    curves = tuple(_curve(timeline, role) for role in timeline.roles)
    length = max(timeline.makespan, beside.makespan if beside is not None else 0)
    return Chart(title, _subtitle(timeline, beside), tuple(rows), tuple(bars), length, curves)


def _add(rows: list[Row], bars: list[Bar], group: str, role: RoleTimeline, prefix: str) -> None:
    lanes = lanes_of(span.lane for span in role.spans)
    place = {lane: len(rows) + i for i, lane in enumerate(lanes)}
    for lane in lanes:
        name = f"{prefix} {lane}" if prefix and lane != "compute" else prefix or lane
        rows.append(Row(group, name, 1.0 if lane == "compute" else 0.45))
    bars += [_bar(place[span.lane], span) for span in role.spans if span.end > span.start]


def _subtitle(timeline: Timeline, beside: Timeline | None) -> str:
    ran = f", measured {spell(beside.makespan)} (bubble {beside.bubble:.1%})" if beside is not None else ""
    return (
        f"{timeline.entry}: {spell(timeline.makespan)} a step{' predicted' if ran else ''}, "
        f"bubble {timeline.bubble:.1%}{ran}, peak {bytes_text(timeline.peak)}, "
        f"{timeline.workers} workers in {len(timeline.roles)} roles"
    )


def groups(timeline: Timeline) -> list[tuple[str, int, RoleTimeline]]:
    """What has rows of its own: name, a worker, its role. Each worker, or each role if there are many workers."""
    if timeline.workers > MOST:
        return [(workers_text(role.workers), role.workers[0], role) for role in timeline.roles]
    found = {worker: role for role in timeline.roles for worker in role.workers}
    return [(f"worker {worker}", worker, found[worker]) for worker in sorted(found)]


def _bar(row: int, span: Span) -> Bar:
    label = str(span.microbatch) if span.microbatch >= 0 else ""
    which = f", micro-batch {span.microbatch}" if span.microbatch >= 0 else ""
    detail = f"{span.name}{which}: {spell(span.start)} to {spell(span.end)} ({spell(span.end - span.start)})"
    return Bar(row, span.start, span.end, span.kind, label, detail, span.critical)


def _curve(timeline: Timeline, role: RoleTimeline) -> Curve:
    points = [(float(level.time), float(level.bytes)) for level in role.memory]
    points.append((float(timeline.makespan), points[-1][1] if points else 0.0))
    return Curve(workers_text(role.workers), tuple(points))
