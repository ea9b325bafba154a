"""From lowered blocks to a Schedule: the named order, or the best that is found, with its certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic

from superscaler.errors import ScheduleError
from superscaler.ir import plan
from superscaler.ir.cluster import Cluster
from superscaler.ir.program import Recv, Send
from superscaler.ir.schedule import Schedule, Slot
from superscaler.scheduler.bounds import Bound, closed_form
from superscaler.scheduler.certified import solve_flow
from superscaler.scheduler.entry_problem import EntryProblem, entry_problem
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Certificate, Problem, makespan
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.prefetch import fetched_late
from superscaler.scheduler.solve import solve
from superscaler.scheduler.stage_flow import StageFlow, orders_of, stage_flow
from superscaler.scheduler.stage_orders import fitting, lane_orders, starts_under, weave
from superscaler.transforms.blocks import Lowered

Starts = tuple[int, ...]

_EFFORT = 1.0
"""Deterministic seconds for the pipeline inside an entry."""
_EXACT_JOBS = 3000
"""Up to so many jobs the whole entry goes to the exact solver."""


def schedule(
    lowered: Lowered,
    cluster: Cluster,
    *,
    time_limit: float | None = None,
    profile: Profile | None = None,
    memory: Mapping[int, int] | None = None,
) -> Schedule:
    """When each block runs. The order is the TaskGraph's: a named schedule, or "solve". ``profile``: measured costs.

    ``memory``: bytes that the arena of a device may have, by device; only "solve" heeds it. Raises :class:`PlanError`
    if the blocks depend on each other in a cycle, or if the named schedule does not go with where the stages lie;
    :class:`InfeasiblePlan` if "solve" finds no schedule within ``memory``.
    """
    entry = entry_problem(lowered, cluster if profile is None else profile.applied(cluster), profile)
    order, seed = lowered.tasks.order, lowered.tasks.seed
    if order == "solve":
        starts, certificate = _solved(entry, _by_class(entry, memory or {}), seed, time_limit)
    else:
        problem = entry.problem()
        starts, name = starts_under(entry, problem, order)
        certificate = _certificate(problem, starts, name, _bound(problem, stage_flow(entry), {}), seed)
    starts = fetched_late(entry.jobs, entry.edges, starts)
    slots = [
        Slot(block, j, start, start + job.duration)
        for (blocks, j), job, start in zip(entry.at, entry.jobs, starts, strict=True)
        for block in blocks
    ]
    slots = _with_their_sends(entry, slots)
    return Schedule(tuple(sorted(slots, key=lambda s: (s.start, s.end, s.block))), certificate)


def _by_class(entry: EntryProblem, memory: Mapping[int, int]) -> dict[int, int]:
    """The least memory of the devices of each class that has any limit."""
    found: dict[int, int] = {}
    for mesh, classes in entry.classes.items():
        limits = [memory[d] for d in entry.lowered.tasks.space.mesh(mesh).devices if d in memory]
        if limits and len(classes) == 1:
            found[classes[0]] = min(limits)
    return found


# --- solving ---------------------------------------------------------------------------------------------------------


def _solved(
    entry: EntryProblem, memory: dict[int, int], seed: int, time_limit: float | None
) -> tuple[Starts, plan.Certificate]:
    """The best of all that is known and of what the solvers find."""
    began = monotonic()
    problem = entry.problem(memory)
    inside = stage_flow(entry)
    bound = _bound(problem, inside, memory)
    known = _known(entry, problem)
    blown = False
    if inside is not None and not _reached(problem, known, bound):
        blown = _from_pipeline(inside, problem, memory, known, seed, time_limit)
    name, starts = min(known.items(), key=lambda each: makespan(problem, each[1])) if known else ("none", None)
    if starts is not None and makespan(problem, starts) == bound.value:
        return starts, _certificate(problem, starts, name, bound, seed, monotonic() - began)
    left = None if time_limit is None else max(0.0, time_limit - (monotonic() - began))
    small = len(problem.jobs) <= _EXACT_JOBS
    table = solve(problem, seed=seed, time_limit=left, hint=starts, **({} if small else {"effort": 0.0}))
    found = table.certificate
    if bound.value > found.bound:
        found = replace(found, bound=bound.value, bound_source=bound.source, binding=bound.binding)
    status = "optimal" if found.bound == found.makespan else "time_limit" if blown else found.status
    status = "feasible" if status == "constructive" and inside is not None else status
    baseline = makespan(problem, starts) if starts is not None else found.baseline[0]
    return table.starts, plan.Certificate(
        status, found.makespan, found.bound, found.gap, baseline, name, found.binding, seed, monotonic() - began
    )


def _known(entry: EntryProblem, problem: Problem) -> dict[str, Starts]:
    """The schedules that are known by name and fit, and the woven one."""
    found: dict[str, Starts] = {}
    tries: dict[str, Callable[[], Starts]] = {
        name: lambda name=name: starts_under(entry, problem, name)[0] for name in fitting(entry)
    }
    for name, make in {**tries, "woven 1f1b": lambda: list_schedule(problem, weave(problem))}.items():
        try:
            found[name] = make()
        except ScheduleError:  # out of memory, or not for so many micro-batches
            continue
    return found


def _from_pipeline(
    inside: StageFlow,
    problem: Problem,
    memory: dict[int, int],
    known: dict[str, Starts],
    seed: int,
    time_limit: float | None,
) -> bool:
    """Add what the pipeline solver finds for the stages alone; whether its time ran out."""
    flow = inside.within(memory)
    if flow is None:
        return False
    starts, blown = solve_flow(
        flow, seed=seed, effort=_EFFORT, time_limit=None if time_limit is None else time_limit / 2
    )
    try:
        known["solved pipeline"] = list_schedule(problem, lane_orders(inside.entry, orders_of(flow, starts)))
    except ScheduleError:
        return blown
    return blown


def _reached(problem: Problem, known: dict[str, Starts], bound: Bound) -> bool:
    return any(makespan(problem, starts) == bound.value for starts in known.values())


# --- certificates ----------------------------------------------------------------------------------------------------


def _bound(problem: Problem, inside: StageFlow | None, memory: dict[int, int]) -> Bound:
    """The best closed-form bound: of the whole problem, or of the pipeline in it."""
    whole = closed_form(problem)
    if inside is None:
        return whole
    return max((whole, inside.bound(memory)), key=lambda bound: bound.value)


def _certificate(
    problem: Problem, starts: Starts, name: str, bound: Bound, seed: int, seconds: float = 0.0
) -> plan.Certificate:
    length = makespan(problem, starts)
    found = Certificate(
        "optimal" if length == bound.value else "constructive",
        length,
        bound.value,
        bound.source,
        (length, name),
        bound.binding,
    )
    return plan.Certificate(found.status, length, bound.value, found.gap, length, name, bound.binding, seed, seconds)


# --- slots -----------------------------------------------------------------------------------------------------------


def _with_their_sends(entry: EntryProblem, slots: list[Slot]) -> list[Slot]:
    """Receives take place while their sends do."""
    comms: dict[int, int] = {}
    sender: dict[int, int] = {}
    for block, key in enumerate(entry.keys):
        for step in entry.lowered.bodies[key].steps:
            if isinstance(step, Send):
                comms[step.comm] = block
    for block, key in enumerate(entry.keys):
        for step in entry.lowered.bodies[key].steps:
            if isinstance(step, Recv):
                sender[block] = comms[step.comm]
    at = {(s.block, s.microbatch): s for s in slots}
    sent = {s: at[sender[s.block], s.microbatch] for s in slots if s.block in sender}
    return [Slot(s.block, s.microbatch, sent[s].start, sent[s].end) if s in sent else s for s in slots]
