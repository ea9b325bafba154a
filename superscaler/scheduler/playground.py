"""``superscaler schedule``: options in, a timetable out, as text or as the dictionary of ``--json``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

from superscaler.errors import ScheduleError, UsageError
from superscaler.scheduler.certified import named_pipeline, solve_pipeline
from superscaler.scheduler.pipeline import KINDS, PipelineProblem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable
from superscaler.scheduler.solve import check_search

SOLVE = "solve"
_COSTS = (*KINDS, "speed")


def schedule(
    problem: PipelineProblem, *, order: str = SOLVE, time_limit: float | None = None, seed: int = 0
) -> PipelineTimetable:
    """The timetable of ``problem``: the best found (``order="solve"``) or that of the named schedule.

    ``time_limit`` is in seconds. Raises :class:`UsageError` for an unknown order, :class:`ScheduleError` for bad costs,
    :class:`InfeasiblePlan` if memory holds no schedule.
    """
    check_search(time_limit, seed)
    if order == SOLVE:
        return solve_pipeline(problem, seed=seed, time_limit=time_limit)
    return named_pipeline(problem, order)


def read_costs(path: Path) -> dict[str, tuple[int, ...]]:
    """The lists ``forward``, ``backward``, ``weight`` (per stage) and ``speed`` (per device) of a ``--costs`` file."""
    try:
        read: object = json.loads(path.read_text(), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
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


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose entries each come once."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"entry {twice[0]!r} comes twice")
    return dict(pairs)


def to_json(table: PipelineTimetable) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    certificate = table.certificate
    return {
        "status": table.status,
        "makespan": table.makespan,
        "bound": table.bound,
        "gap": table.gap,
        "bubble": table.bubble,
        "seconds": table.seconds,
        "bound_source": certificate.bound_source,
        "binding": certificate.binding,
        "baseline": {"makespan": certificate.baseline[0], "name": certificate.baseline[1]},
        "seed": certificate.seed,
        "slots": table.slots,
    }
