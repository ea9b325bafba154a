"""Measured times of a run in the form of a Timeline, to be drawn beside the predicted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from superscaler.errors import PlanFileError
from superscaler.ir.entry import Contents
from superscaler.ir.program import Program
from superscaler.ir.writing import write_at_once
from superscaler.scheduler.timeline import RoleTimeline, Span, Timeline

Times = Sequence[Sequence[tuple[float, float]]]


class Trace(msgspec.Struct, frozen=True):
    """What one run took. ``tasks``: per worker, start and end of each item of its Program in microseconds."""

    entry: str
    tasks: list[list[tuple[float, float]]]
    version: int = 1


def read_trace(path: Path) -> Trace:
    """The trace that ``superscaler run --trace`` wrote. Raises :class:`PlanFileError` if the file is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trace)
    except OSError as e:
        raise PlanFileError(f"cannot read {path}", f"{e.strerror or e}", hint="a file that `run --trace` wrote") from e
    except ValueError as e:
        raise PlanFileError(f"{path} is no trace of a run", str(e)[:200], hint="superscaler run FILE --trace F") from e


def measured(plan: Contents, trace: Trace) -> Timeline:
    """The timeline of a run. Raises :class:`PlanFileError` if the trace is not one of this plan."""
    entry = plan.entries.get(trace.entry)
    programs = {} if entry is None else {worker: p for p in entry.programs for worker in p.workers}
    fits = len(trace.tasks) == plan.workers and all(
        len(times) == (len(programs[w].order) if w in programs else 0) for w, times in enumerate(trace.tasks)
    )
    if not fits:
        raise PlanFileError(
            "the trace is not one of this plan",
            f"it has {len(trace.tasks)} workers, {trace.entry}",
            hint="the trace of a run of this plan",
        )
    length = max((round(end) for times in trace.tasks for _, end in times), default=0)
    roles = tuple(_role(program, worker, trace.tasks[worker], length) for worker, program in sorted(programs.items()))
    bubble = sum(role.bubble for role in roles) / len(roles) if roles else 0.0
    return Timeline(trace.entry, length, bubble, roles, ())


def _role(program: Program, worker: int, times: Sequence[tuple[float, float]], length: int) -> RoleTimeline:
    spans: list[Span] = []
    for number, (item, (start, end)) in enumerate(zip(program.order, times, strict=True)):
        block = program.blocks[item.block]
        which = item.microbatch if block.over else -1
        spans.append(Span(number, block.name, block.kind, block.lane, block.stage, which, round(start), round(end)))
    busy: dict[str, int] = {}
    for span in spans:
        busy[span.lane] = busy.get(span.lane, 0) + span.end - span.start
    bubble = 1.0 - busy.get("compute", 0) / length if length else 0.0
    return RoleTimeline((worker,), tuple(spans), busy, bubble, 0, program.arena, program.peak, ())


def trace_of(entry: str, workers: int, timings: Sequence[Any]) -> Trace:
    """A trace from :meth:`Job.trace`, whose timings are per worker in the order of its Program."""
    tasks: list[list[tuple[float, float]]] = [[] for _ in range(workers)]
    for timing in timings:
        tasks[cast(int, timing.worker)].append((round(timing.start, 1), round(timing.end, 1)))
    return Trace(entry, tasks)


def write_trace(trace: Trace, path: Path) -> None:
    """Raises :class:`OSError`."""
    write_at_once(path, msgspec.json.encode(trace))
