"""Why no schedule fits, and the smallest single change after which one does: each found by trying, none guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from superscaler.errors import InfeasiblePlan
from superscaler.scheduler.initial import constructive
from superscaler.scheduler.problem import Edge, Job, Problem

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
        hint=", or ".join(change.text for change in changes) or "more memory on several devices at once",
    )


def smallest_changes(problem: Problem) -> Iterator[Change]:
    """Of each sort the smallest change that alone makes ``problem`` feasible: memory, micro-batches, recompute."""
    for device, capacity in enumerate(problem.capacity):
        if capacity is not None and (need := _least_capacity(problem, device, capacity)) is not None:
            roomier = _with_capacity(problem, device, need)
            yield Change(f"memory[{device}]={capacity}", f"{need} units of memory on device {device}", roomier)
    if (need := _least_everywhere(problem)) is not None:
        short = [d for d, units in enumerate(problem.capacity) if units is not None and units < need]
        limits = ", ".join(f"memory[{d}]={problem.capacity[d]}" for d in short)
        yield Change(limits, f"{need} units of memory on every device", _everywhere(problem, need))
    numbers = sorted({job.microbatch for job in problem.jobs if job.microbatch >= 0})
    for count in range(len(numbers) - 1, 0, -1):
        fewer = _first_microbatches(problem, set(numbers[:count]))
        if fits(fewer):
            yield Change(f"microbatches={len(numbers)}", f"{count} micro-batches instead of {len(numbers)}", fewer)
            break
    for stage in sorted({job.stage for job in problem.jobs if job.kind == "forward" and job.acquire}):
        if fits(changed := recompute(problem, stage)):
            where = next(job.device for job in problem.jobs if job.stage == stage)
            yield Change(f"memory[{where}]={problem.capacity[where]}", f"recompute stage {stage}", changed)
            break


def fits(problem: Problem) -> bool:
    """Whether a schedule within memory is found: by construction, or else by exact search."""
    if hopeless(problem):
        return False
    if constructive(problem):
        return True
    from superscaler.scheduler import cpsat

    return cpsat.search(problem, effort=_EFFORT).starts is not None


def hopeless(problem: Problem) -> bool:
    """Whether a job by itself takes more memory than its device has."""
    return any(_alone(problem, job) for job in problem.jobs)


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


def _least_capacity(problem: Problem, device: int, capacity: int) -> int | None:
    """The least capacity of ``device`` with which, the others as they are, something fits."""
    most = sum(job.acquire for job in problem.jobs if job.device == device)
    return _least(capacity, most, lambda units: fits(_with_capacity(problem, device, units)))


def _least_everywhere(problem: Problem) -> int | None:
    """The least capacity that, if every device had as much, is enough; None if it is one device that is short."""
    limits = [units for units in problem.capacity if units is not None]
    if len(limits) < 2:
        return None
    most = max(sum(job.acquire for job in problem.jobs if job.device == d) for d in range(len(problem.capacity)))
    return _least(min(limits), most, lambda units: fits(_everywhere(problem, units)))


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int | None:
    """The least number above ``low`` that is enough, by bisection; None if ``high`` is not."""
    if high <= low or not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _everywhere(problem: Problem, units: int) -> Problem:
    return replace(problem, capacity=tuple(None if old is None else max(old, units) for old in problem.capacity))


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
