"""``superscaler schedule``: options in, a timetable out, as text or as the dictionary of ``--json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from superscaler.errors import ScheduleError, UsageError
from superscaler.scheduler.certified import PipelineTimetable, named_pipeline, solve_pipeline
from superscaler.scheduler.pipeline import COMM, COMPUTE, KINDS, PipelineProblem, hops

SOLVE = "solve"
Slot = dict[str, int | str]
"""device, lane, kind, stage, microbatch, start, end"""
_COSTS = (*KINDS, "speed")


def schedule(
    problem: PipelineProblem, *, order: str = SOLVE, time_limit: float | None = None, seed: int = 0
) -> PipelineTimetable:
    """The timetable of ``problem``: the best found (``order="solve"``) or that of the named schedule.

    ``time_limit`` is in seconds. Raises :class:`UsageError` for an unknown order, :class:`ScheduleError` for bad costs,
    :class:`InfeasiblePlan` if memory holds no schedule.
    """
    if time_limit is not None and not time_limit >= 0:
        raise UsageError(f"--time-limit is {time_limit}", hint="0 or more seconds")
    if order == SOLVE:
        return solve_pipeline(problem, seed=seed, time_limit=time_limit)
    return named_pipeline(problem, order)


def read_costs(path: Path) -> dict[str, tuple[int, ...]]:
    """The lists ``forward``, ``backward``, ``weight`` (per stage) and ``speed`` (per device) of a ``--costs`` file."""
    try:
        read: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read costs from {path}", str(error), hint="a JSON object of lists") from None
    if not isinstance(read, dict):
        raise UsageError(f"{path} holds no JSON object", hint='{"forward": [10, 12], "backward": ..., "weight": ...}')
    costs: dict[str, tuple[int, ...]] = {}
    for name, values in cast(dict[str, object], read).items():
        if name not in _COSTS:
            raise UsageError(f"{path}: unknown entry {name!r}", hint=f"one of {', '.join(_COSTS)}")
        numbers = cast(list[object], values) if isinstance(values, list) else []
        if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise ScheduleError(f"{path}: {name} is not a list of integers", hint="integers, one per stage or device")
        costs[name] = tuple(cast(list[int], numbers))
    return costs


def to_json(table: PipelineTimetable) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    certificate = table.certificate
    return {
        "status": certificate.status,
        "makespan": certificate.makespan,
        "bound": certificate.bound,
        "gap": certificate.gap,
        "bubble": table.bubble,
        "seconds": certificate.seconds,
        "bound_source": certificate.bound_source,
        "binding": certificate.binding,
        "baseline": {"makespan": certificate.baseline[0], "name": certificate.baseline[1]},
        "seed": certificate.seed,
        "slots": list(slots(table)),
    }


def slots(table: PipelineTimetable) -> Iterator[Slot]:
    """Every task and send, with device, lane, kind, stage, microbatch, start and end."""
    problem, shape = table.problem, table.problem.shape
    for kind, rows in zip(KINDS, table.starts, strict=True):
        for stage, (row, duration) in enumerate(zip(rows, problem.durations(kind), strict=True)):
            for j, start in enumerate(row):
                yield {
                    "device": shape.device(stage, j),
                    "lane": COMPUTE,
                    "kind": kind,
                    "stage": stage,
                    "microbatch": j,
                    "start": start,
                    "end": start + duration,
                }
    if problem.comm:
        yield from _sends(table)


def _sends(table: PipelineTimetable) -> Iterator[Slot]:
    problem, shape = table.problem, table.problem.shape
    for kind, stage, to in hops(problem):
        row, duration = table.starts[KINDS.index(kind)][stage], problem.durations(kind)[stage]
        for j, begun in enumerate(row):
            if shape.device(stage, j) == shape.device(to, j):
                continue
            start = begun + duration if not table.sends else table.sends[kind, stage, j]
            yield {
                "device": shape.device(stage, j),
                "lane": COMM,
                "kind": "send",
                "stage": stage,
                "microbatch": j,
                "start": start,
                "end": start + problem.comm,
            }
