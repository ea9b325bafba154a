"""A Timeline in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from superscaler.ir.writing import write_at_once
from superscaler.scheduler.timeline import RoleTimeline, Timeline
from superscaler.viz.chart import lanes_of, legend_name
from superscaler.viz.plan_timeline import groups

Event = dict[str, Any]


def write_perfetto(timeline: Timeline, path: str | Path) -> None:
    """Write the trace: a process per worker (per role if there are many), a thread per lane, a counter for memory.

    Raises :class:`OSError`.
    """
    text = json.dumps({"traceEvents": events(timeline), "displayTimeUnit": "ms"})
    write_at_once(Path(path), text.encode())


def events(timeline: Timeline) -> list[Event]:
    """The trace's events; times in microseconds."""
    return [event for name, worker, role in groups(timeline) for event in _worker(role, worker, name)]


def _worker(role: RoleTimeline, worker: int, name: str) -> list[Event]:
    lanes = lanes_of(span.lane for span in role.spans)
    found: list[Event] = [
        {"ph": "M", "name": "process_name", "pid": worker, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": worker, "args": {"sort_index": worker}},
    ]
    for tid, lane in enumerate(lanes):
        found.append({"ph": "M", "name": "thread_name", "pid": worker, "tid": tid, "args": {"name": lane}})
    for span in role.spans:
        if span.end == span.start:
            continue
        details: dict[str, Any] = {"stage": span.stage, "critical": span.critical}
        if span.microbatch >= 0:
            details["micro-batch"] = span.microbatch
        found.append(
            {
                "ph": "X",
                "name": span.name,
                "cat": legend_name(span.kind),
                "pid": worker,
                "tid": lanes.index(span.lane),
                "ts": span.start,
                "dur": span.end - span.start,
                "args": details,
            }
        )
    for level in role.memory:
        found.append({"ph": "C", "name": "bytes held", "pid": worker, "ts": level.time, "args": {"bytes": level.bytes}})
    return found
