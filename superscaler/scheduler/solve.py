"""Any problem to its timetable: closed-form bound, constructive schedules, exact search, certificate."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from superscaler.errors import InfeasiblePlan, ScheduleError
from superscaler.scheduler.bounds import Bound, closed_form, heads_and_tails
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Certificate, Problem, Status, Timetable, makespan, validate, verify

EFFORT = 8.0
_LEAST_SEARCH = 0.05


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    effort: float = EFFORT,
    time_limit: float | None = None,
    hint: Sequence[int] | None = None,
) -> Timetable:
    """The best schedule found for ``problem`` with its certificate.

    ``effort`` bounds the exact search in deterministic seconds (0: none); ``time_limit`` is a wall-clock fuse in
    seconds, after which the best schedule known is returned with status ``"time_limit"``. ``hint`` is a schedule known
    already. Raises :class:`ScheduleError` if the problem or the hint is malformed, :class:`InfeasiblePlan` if no
    schedule fits in memory or none was found within the limits.
    """
    began = monotonic()
    validate(problem)
    _check_units(problem)
    bound = closed_form(problem)
    known = constructive(problem)
    if hint is not None:
        verify(problem, hint)
        known["hint"] = tuple(hint)
    name, starts = best(problem, known)
    baseline = (makespan(problem, starts), name) if starts is not None else None
    status: Status = "constructive"
    left = None if time_limit is None else time_limit - (monotonic() - began)
    solved = baseline is not None and baseline[0] == bound.value
    if not solved and effort > 0:
        status = "time_limit"
        if left is None or left > _LEAST_SEARCH:
            starts, bound, status = _search(problem, starts, bound, effort, seed, left)
    if starts is None:
        raise InfeasiblePlan("no schedule found within the limits", hint="a longer limit, or more memory")
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
            baseline=baseline or (length, "none"),
            binding=bound.binding,
            seed=seed,
            seconds=monotonic() - began,
        ),
    )


def constructive(problem: Problem) -> dict[str, tuple[int, ...]]:
    """List schedules by several priorities, by name; those that run out of memory are left out."""
    heads, tails = heads_and_tails(problem)
    jobs = problem.jobs
    drain = {index: 0 if job.release else 1 for index, job in enumerate(jobs)}
    priorities: dict[str, list[float]] = {
        "longest tail first": [-tail for tail in tails],
        "micro-batch by micro-batch": [job.microbatch * (max(heads) + 1) + heads[i] for i, job in enumerate(jobs)],
        "latest stage first": [-heads[i] for i in range(len(jobs))],
        "give memory back first": [drain[i] * (max(tails) + 1) - tails[i] for i in range(len(jobs))],
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, priority in priorities.items():
        try:
            found[name] = list_schedule(problem, priority)
        except ScheduleError:
            continue
    if not found and (starts := _one_after_another(problem)) is not None:
        found["one after another"] = starts
    return found


def best(problem: Problem, known: dict[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...] | None]:
    """The shortest of ``known`` (the first of equals), or ``("none", None)``."""
    if not known:
        return "none", None
    name = min(known, key=lambda name: makespan(problem, known[name]))
    return name, known[name]


def _one_after_another(problem: Problem) -> tuple[int, ...] | None:
    """Every job after the one before it, micro-batch by micro-batch: holds the least memory; None if that fails."""
    order = sorted(validate(problem), key=lambda index: problem.jobs[index].microbatch)
    position = {index: place for place, index in enumerate(order)}
    now = 0
    starts = [0] * len(order)
    ready = [0] * len(order)
    if any(position[a] > position[b] for a, b, _ in problem.edges):
        return None
    after: list[list[tuple[int, int]]] = [[] for _ in order]
    for before, successor, delay in problem.edges:
        after[before].append((successor, delay))
    for index in order:
        starts[index] = now = max(now, ready[index])
        now += problem.jobs[index].duration
        for successor, delay in after[index]:
            ready[successor] = max(ready[successor], now + delay)
    try:
        verify(problem, starts)
    except ScheduleError:
        return None
    return tuple(starts)


def _search(
    problem: Problem, starts: tuple[int, ...] | None, bound: Bound, effort: float, seed: int, left: float | None
) -> tuple[tuple[int, ...] | None, Bound, Status]:
    """The exact search; the incumbent is kept here, whatever the solver returns."""
    from superscaler.scheduler import cpsat

    upper = None if starts is None else makespan(problem, starts)
    outcome = cpsat.search(
        problem, lower=bound.value, upper=upper, hint=starts, effort=effort, seed=seed, time_limit=left
    )
    if outcome.infeasible:
        if starts is None:
            raise InfeasiblePlan("no schedule fits the memory of the devices", *_limits(problem))
        raise ScheduleError("the solver contradicts a verified schedule", hint="please report this problem")
    if outcome.bound > bound.value:
        bound = Bound(outcome.bound, "exact search", bound.binding)
    if outcome.starts is not None and (upper is None or makespan(problem, outcome.starts) < upper):
        starts = outcome.starts
    return starts, bound, "time_limit" if outcome.fused else "feasible"


def _limits(problem: Problem) -> list[str]:
    return [f"memory[{d}] = {units} units" for d, units in enumerate(problem.capacity) if units is not None]


def _check_units(problem: Problem) -> None:
    for job in problem.jobs:
        capacity = problem.capacity[job.device]
        if capacity is not None and job.acquire > capacity:
            raise InfeasiblePlan(
                f"no schedule fits the memory of device {job.device}",
                f"{job} alone takes {job.acquire} units of {capacity}",
                f"limits in conflict: memory[{job.device}]",
                hint=f"at least {job.acquire} units on device {job.device}",
            )
