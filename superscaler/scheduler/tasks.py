"""From lowered blocks to a Schedule: the named order, or the best that is found, with its certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

from superscaler.errors import InfeasiblePlan, ScheduleError
from superscaler.ir import plan
from superscaler.ir.cluster import Cluster
from superscaler.ir.program import Recv, Send
from superscaler.ir.schedule import Schedule, Slot
from superscaler.scheduler.bounds import Bound, closed_form
from superscaler.scheduler.certified import solve_flow
from superscaler.scheduler.entry_problem import EntryProblem, entry_problem
from superscaler.scheduler.explain import least_held
from superscaler.scheduler.initial import constructive
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.prefetch import fetched_late
from superscaler.scheduler.problem import Certificate, Problem, makespan
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.solve import check_search, solve
from superscaler.scheduler.stage_flow import StageFlow, orders_of, stage_flow
from superscaler.scheduler.stage_orders import fitting, lane_orders, starts_under, weave
from superscaler.transforms.blocks import Lowered

Starts = tuple[int, ...]

_EFFORT = 1.0
"""Deterministic seconds for the pipeline inside an entry."""
_FEWER = 4
"""How many activations fewer than fit by themselves are tried."""
_EXACT_EFFORT = 2.0
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
    check_search(time_limit, lowered.tasks.seed)
    entry = entry_problem(lowered, cluster if profile is None else profile.applied(cluster), profile)
    order, seed = lowered.tasks.order, lowered.tasks.seed
    if order == "solve":
        starts, certificate = _solved(entry, _by_class(entry, memory or {}), seed, time_limit)
    else:
        problem = entry.problem()
        starts, name = starts_under(entry, problem, order)
        certificate = _certificate(problem, starts, name, _bound(problem, stage_flow(entry), {}), seed)
    return _written(entry, starts, certificate)


def sequential(
    lowered: Lowered, cluster: Cluster, profile: Profile | None = None, memory: Mapping[int, int] | None = None
) -> Schedule:
    """One micro-batch after another, which holds the least, within ``memory`` as :func:`schedule` has it.

    Raises :class:`InfeasiblePlan` if even one micro-batch takes more.
    """
    entry = entry_problem(lowered, cluster if profile is None else profile.applied(cluster), profile)
    limits = _by_class(entry, memory or {})
    problem = entry.problem(limits)
    starts = least_held(problem)
    if starts is None:
        raise _too_little(problem)
    bound = _bound(problem, stage_flow(entry), limits)
    return _written(entry, starts, _certificate(problem, starts, "one after another", bound, lowered.tasks.seed))


def _written(entry: EntryProblem, starts: Starts, certificate: plan.Certificate) -> Schedule:
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
    if not known:
        known = _unnamed(problem)
    blown = False
    if inside is not None and not _reached(problem, known, bound):
        blown = _from_pipeline(inside, problem, memory, known, seed, time_limit)
    name, starts = min(known.items(), key=lambda each: makespan(problem, each[1]))
    if makespan(problem, starts) == bound.value:
        return starts, _certificate(problem, starts, name, bound, seed, monotonic() - began)
    left = None if time_limit is None else max(0.0, time_limit - (monotonic() - began))
    effort = _EXACT_EFFORT if len(problem.jobs) <= _EXACT_JOBS else 0.0
    table = solve(problem, seed=seed, effort=effort, time_limit=left, hint=starts, bound=bound)
    found = table.certificate
    status = "time_limit" if blown and found.status != "optimal" else found.status
    status = "feasible" if status == "constructive" and inside is not None else status
    return table.starts, plan.Certificate(
        status, found.makespan, found.bound, found.gap, makespan(problem, starts), name, found.binding, seed,
        monotonic() - began,
    )  # fmt: skip


def _unnamed(problem: Problem) -> dict[str, Starts]:
    """Schedules of any sort within memory; :class:`InfeasiblePlan` if there are none."""
    least = least_held(problem)
    if least is None:
        raise _too_little(problem)
    return {**constructive(problem), "one after another": least}


def _too_little(problem: Problem) -> InfeasiblePlan:
    limits = ", ".join(f"memory[{d}]={units}" for d, units in enumerate(problem.capacity) if units is not None)
    return InfeasiblePlan(
        "no schedule was found within the memory of the devices",
        f"limits: {limits}",
        hint="more memory, fewer or smaller micro-batches, or recompute",
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
    deadline = None if time_limit is None else monotonic() + time_limit / 2
    blown = False
    for fewer in range(_FEWER if memory else 1):
        flow = inside.within(memory, fewer)
        left = None if deadline is None else deadline - monotonic()
        if flow is None or (left is not None and left <= 0):
            break
        starts, blown = solve_flow(flow, seed=seed, effort=_EFFORT, time_limit=left)
        try:
            known["solved pipeline"] = list_schedule(problem, lane_orders(inside.entry, orders_of(flow, starts)))
        except ScheduleError:  # what is held besides activations takes more than there is
            continue
        break
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
