"""Why no schedule fits, and the smallest single change after which one does: each found by trying, none guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from operator import or_

from superscaler.errors import InfeasiblePlan
from superscaler.scheduler.initial import constructive, one_after_another
from superscaler.scheduler.problem import Edge, Job, Problem, topological_order
from superscaler.scheduler.symmetry import key

_EFFORT = 2.0


@dataclass(frozen=True, slots=True)
class Change:
    """One change that makes a problem feasible: ``limit`` is what it relieves, ``text`` says it to the user."""

    limit: str
    text: str
    problem: Problem


def infeasible(problem: Problem) -> InfeasiblePlan:
    """The error for a problem that no schedule fits: its limits in conflict and the smallest changes that end that."""
    changes = list(smallest_changes(problem))
    limits = list(dict.fromkeys(change.limit for change in changes)) or _limits(problem)
    where = next((_too_big(problem, job) for job in problem.jobs if _alone(problem, job)), "")
    return InfeasiblePlan(
        "no schedule fits the memory of the devices",
        *([where] if where else []),
        f"limits in conflict: {', '.join(limits)}",
        hint=", or ".join(change.text for change in changes) or "more memory",
    )


def smallest_changes(problem: Problem) -> Iterator[Change]:
    """Of each sort the smallest change that alone makes ``problem`` feasible: memory, micro-batches, recompute.

    Memory of one device if that can be enough; else of several, none of which could be given one unit less.
    """
    short = list(islice(_short(problem), 2))
    roomier = list(_least_of_one(problem)) if len(short) < 2 else []
    for changed in roomier or _least_of_several(problem):
        grown = {d: new for d, new in enumerate(changed.capacity) if new != problem.capacity[d] and new is not None}
        limits = ", ".join(f"memory[{d}]={problem.capacity[d]}" for d in grown)
        yield Change(limits, more_memory(grown, len(problem.capacity), "units of memory"), changed)
    numbers = sorted({job.microbatch for job in problem.jobs if job.microbatch >= 0})
    left_out = least(0, len(numbers) - 1, lambda out: fits(_first_microbatches(problem, set(numbers[:-out]))))
    if left_out is not None:
        kept = numbers[:-left_out]
        text = f"{len(kept)} micro-batches instead of {len(numbers)}"
        yield Change(f"microbatches={len(numbers)}", text, _first_microbatches(problem, set(kept)))
    if len(short) < 2:
        yield from _least_recomputed(problem)


def _short(problem: Problem) -> Iterator[int]:
    """The devices whose memory is too little even if that of the others has no limit."""
    for device, units in enumerate(problem.capacity):
        others = tuple(units if d == device else None for d in range(len(problem.capacity)))
        if units is not None and not fits(replace(problem, capacity=others)):
            yield device


def _least_recomputed(problem: Problem) -> Iterator[Change]:
    """The stage that is made again in the least time of those which are enough."""
    costs: dict[int, int] = {}
    for job in problem.jobs:
        if job.kind == "forward" and job.acquire:
            costs[job.stage] = costs.get(job.stage, 0) + job.duration
    for stage in sorted(costs, key=lambda stage: (costs[stage], stage)):
        if fits(changed := recompute(problem, stage)):
            where = next(job.device for job in problem.jobs if job.stage == stage)
            yield Change(f"memory[{where}]={problem.capacity[where]}", f"recompute stage {stage}", changed)
            break


def more_memory(grown: dict[int, int], devices: int, units: str) -> str:
    """In words: the memory that each device of ``grown`` needs, of so many devices."""
    if len(set(grown.values())) > 1:
        return f"{units}: " + ", ".join(f"{n} on device {d}" for d, n in grown.items())
    several = "every device" if len(grown) == devices else f"devices {', '.join(map(str, grown))}"
    where = several if len(grown) > 1 else f"device {next(iter(grown))}"
    return f"{next(iter(grown.values()))} {units} on {where}"


def fits(problem: Problem) -> bool:
    """Whether a schedule within memory is found: by construction, or else by exact search."""
    if hopeless(problem):
        return False
    if constructive(problem):
        return True
    if held_at_once(problem):
        return False
    from superscaler.scheduler import cpsat

    return cpsat.first(problem, effort=_EFFORT).starts is not None


def least_held(problem: Problem) -> tuple[int, ...] | None:
    """A schedule of micro-batches one after another, each in an order that fits; None if that is not found.

    Several micro-batches hold no less than one: if one alone does not fit, nothing does. Where orders that were asked
    for forbid this, any schedule.
    """
    if hopeless(problem):
        return None
    if (starts := one_after_another(problem)) is not None:
        return starts
    from superscaler.scheduler import cpsat

    one = _first_microbatches(problem, {0})
    found = cpsat.first(one, effort=_EFFORT).starts
    if found is None:
        return None
    urgency = {key(job): start for job, start in zip(one.jobs, found, strict=True)}
    starts = one_after_another(problem, [urgency.get(key(job), 0) for job in problem.jobs])
    return starts or cpsat.first(problem, effort=_EFFORT).starts


def hopeless(problem: Problem) -> bool:
    """Whether a job by itself takes more memory than its device has."""
    return any(_alone(problem, job) for job in problem.jobs)


def held_at_once(problem: Problem) -> bool:
    """Whether on some device whatever gives memory back first comes after more has been taken than there is.

    Then nothing fits, which a search might take long to find out (a barrier over many micro-batches).
    """
    taken = _taken_before(problem)
    for device, units in enumerate(problem.capacity):
        here = [i for i, job in enumerate(problem.jobs) if job.device == device]
        takers = {i: problem.jobs[i].acquire for i in here if problem.jobs[i].acquire}
        if units is None or not takers or sum(takers.values()) <= units:
            continue
        first = {taken[i] for i in here if problem.jobs[i].release}
        if all(sum(size for i, size in takers.items() if before >> i & 1) > units for before in first):
            return True
    return False


def _taken_before(problem: Problem) -> list[int]:
    """For each job, as bits, itself and the jobs before it that take memory."""
    before: list[list[int]] = [[] for _ in problem.jobs]
    for a, b, _ in problem.edges:
        before[b].append(a)
    found = [0] * len(problem.jobs)
    for i in topological_order(problem.jobs, ((a, b) for a, b, _ in problem.edges)):
        own = 1 << i if problem.jobs[i].acquire else 0
        found[i] = reduce(or_, (found[a] for a in before[i]), own)
    return found


def recompute(problem: Problem, stage: int) -> Problem:
    """``problem`` with the activations of ``stage`` given back after its forward and made again before its backward."""
    jobs, edges = list(problem.jobs), list(problem.edges)
    for index, job in enumerate(problem.jobs):
        if job.kind != "forward" or job.stage != stage or not job.acquire:
            continue
        jobs[index] = replace(job, release=job.release + job.acquire)
        jobs.append(replace(job, kind="recompute"))
        edges += [(index, len(jobs) - 1, 0)]
        edges += [
            (len(jobs) - 1, b, 0) for a, b, _ in problem.edges if a == index and _same_place(job, problem.jobs[b])
        ]
    return Problem(tuple(jobs), tuple(edges), problem.capacity)


def _same_place(a: Job, b: Job) -> bool:
    return (a.device, a.stage, a.microbatch, a.chain) == (b.device, b.stage, b.microbatch, b.chain)


def _least_of_one(problem: Problem) -> Iterator[Problem]:
    """For each device the least memory with which, the others as they are, something fits."""
    for device, units in enumerate(problem.capacity):
        if units is not None:
            need = least(units, _most(problem, device), lambda n, d=device: fits(_with_capacity(problem, d, n)))
            if need is not None:
                yield _with_capacity(problem, device, need)


def _least_of_several(problem: Problem) -> Iterator[Problem]:
    """Memories that are enough together, each the least that goes with the others."""
    roomier = problem
    limited = [(device, units) for device, units in enumerate(problem.capacity) if units is not None]
    for device, units in limited:
        roomier = _with_capacity(roomier, device, max(units, _most(problem, device)))
    if not fits(roomier):
        return
    for device, units in limited:
        most = _most(problem, device)
        need = least(units - 1, most, lambda n, d=device, p=roomier: fits(_with_capacity(p, d, n)))
        roomier = _with_capacity(roomier, device, units if need is None else need)
    yield roomier


def _most(problem: Problem, device: int) -> int:
    """The memory that no schedule can exceed."""
    return sum(job.acquire for job in problem.jobs if job.device == device)


def least(low: int, high: int, enough: Callable[[int], bool]) -> int | None:
    """The least number above ``low`` that is enough, by bisection; None if ``high`` is not."""
    if high <= low or not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _with_capacity(problem: Problem, device: int, units: int) -> Problem:
    return replace(problem, capacity=(*problem.capacity[:device], units, *problem.capacity[device + 1 :]))


def _first_microbatches(problem: Problem, kept: set[int]) -> Problem:
    """``problem`` without the other micro-batches; what belongs to none stays."""
    place: dict[int, int] = {}
    for index, job in enumerate(problem.jobs):
        if job.microbatch < 0 or job.microbatch in kept:
            place[index] = len(place)
    edges: list[Edge] = [(place[a], place[b], delay) for a, b, delay in problem.edges if a in place and b in place]
    return Problem(tuple(problem.jobs[index] for index in place), tuple(edges), problem.capacity)


def _alone(problem: Problem, job: Job) -> bool:
    """Whether ``job`` by itself takes more than its device has."""
    capacity = problem.capacity[job.device]
    return capacity is not None and job.acquire > capacity


def _too_big(problem: Problem, job: Job) -> str:
    return f"{job} alone takes {job.acquire} units, device {job.device} has {problem.capacity[job.device]}"


def _limits(problem: Problem) -> list[str]:
    return [f"memory[{d}]={units}" for d, units in enumerate(problem.capacity) if units is not None]
