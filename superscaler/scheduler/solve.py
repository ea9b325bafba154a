"""Any problem to its timetable: closed-form bound, constructive schedules, exact search, certificate."""

from __future__ import annotations

from collections.abc import Sequence
from sys import float_info
from time import monotonic

from superscaler.errors import InfeasiblePlan, ScheduleError, UsageError
from superscaler.ir.argument import whole
from superscaler.scheduler.bounds import Bound, closed_form
from superscaler.scheduler.explain import held_at_once, hopeless, infeasible
from superscaler.scheduler.initial import Known, best, constructive
from superscaler.scheduler.problem import Certificate, Problem, Status, Timetable, makespan, validate, verify

EFFORT = 8.0
_FIRST_EFFORT = 2.0
"""For any schedule at all, where none was constructed."""
_LEAST_SEARCH = 0.05


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    effort: float = EFFORT,
    time_limit: float | None = None,
    hint: Sequence[int] | None = None,
    bound: Bound | None = None,
) -> Timetable:
    """The best schedule found for ``problem`` with its certificate.

    ``effort`` bounds the exact search in deterministic seconds (0: none); ``time_limit`` is a wall-clock fuse in
    seconds, after which the best schedule known is returned with status ``"time_limit"``. ``hint`` is a schedule known
    already, ``bound`` a bound that is proven already. Raises :class:`ScheduleError` if the problem or the hint is
    malformed, :class:`InfeasiblePlan` if no schedule fits in memory or none was found within the limits.
    """
    began = monotonic()
    validate(problem)
    if hopeless(problem):
        raise infeasible(problem)
    known = constructive(problem, lambda: hint is not None and _spent(began, time_limit))
    if not known and hint is None:
        known = _found(problem, seed, time_limit)
    bound = max(filter(None, (closed_form(problem), bound)), key=lambda each: each.value)
    if hint is not None:
        verify(problem, hint)
        known["hint"] = tuple(hint)
    name, starts = best(problem, known)
    baseline = (makespan(problem, starts), name)
    status: Status = "constructive"
    left = None if time_limit is None else time_limit - (monotonic() - began)
    if baseline[0] > bound.value and effort > 0:
        status = "time_limit"
        if left is None or left > _LEAST_SEARCH:
            starts, bound, status = _search(problem, starts, bound, effort, seed, left)
    verify(problem, starts)
    length = makespan(problem, starts)
    return Timetable(
        problem,
        starts,
        Certificate(
            status="optimal" if length == bound.value else status,
            makespan=length,
            bound=bound.value,
            bound_source=bound.source,
            baseline=baseline,
            binding=bound.binding,
            seed=seed,
            seconds=monotonic() - began,
        ),
    )


def _spent(began: float, time_limit: float | None) -> bool:
    return time_limit is not None and monotonic() - began > time_limit


def check_search(time_limit: object, seed: object) -> None:
    """Raise unless a search can be limited to ``time_limit`` (None, or 0 or more seconds) and started at ``seed``."""
    whole(seed, "seed")
    number = isinstance(time_limit, int | float) and time_limit >= 0
    too_long = isinstance(time_limit, int) and time_limit > float_info.max
    if time_limit is not None and (not number or too_long):
        raise UsageError(f"time limit: {time_limit!r}", "no search can take that long", hint="0 or more seconds")


def _found(problem: Problem, seed: int, time_limit: float | None) -> Known:
    """Any schedule within memory, by search; :class:`InfeasiblePlan` if there is none, or none is found in time."""
    if held_at_once(problem):
        raise infeasible(problem)
    from superscaler.scheduler import cpsat

    left = None if time_limit is None else max(time_limit, _LEAST_SEARCH)
    outcome = cpsat.first(problem, effort=_FIRST_EFFORT, seed=seed, time_limit=left)
    if outcome.infeasible:
        raise infeasible(problem)
    if outcome.starts is None:
        raise InfeasiblePlan("no schedule found within the limits", hint="a longer limit, or more memory")
    return {"first found": outcome.starts}


def _search(
    problem: Problem, starts: tuple[int, ...], bound: Bound, effort: float, seed: int, left: float | None
) -> tuple[tuple[int, ...], Bound, Status]:
    """The exact search; the incumbent is kept here, whatever the solver returns."""
    from superscaler.scheduler import cpsat

    upper = makespan(problem, starts)
    outcome = cpsat.search(
        problem, lower=bound.value, upper=upper, hint=starts, effort=effort, seed=seed, time_limit=left
    )
    if outcome.infeasible:
        raise ScheduleError("the solver contradicts a verified schedule", hint="please report this problem")
    if outcome.bound > bound.value:
        bound = Bound(outcome.bound, "exact search", bound.binding)
    if outcome.starts is not None and makespan(problem, outcome.starts) < upper:
        starts = outcome.starts
    return starts, bound, "time_limit" if outcome.fused else "feasible"
