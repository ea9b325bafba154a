"""What is to be scheduled, and what a schedule of it is: integer ticks, lanes, memory units, a certificate.

A :class:`Problem` knows nothing of operators or of pipelines; it is the form that every question of time and space
takes before it is solved. A :class:`Timetable` is one start per job with the proof of how good it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from superscaler.errors import ScheduleError

Lane = tuple[int, str]
Edge = tuple[int, int, int]
Status = Literal["optimal", "feasible", "time_limit", "constructive"]


@dataclass(frozen=True, slots=True)
class Job:
    """One schedulable task instance.

    ``duration`` is in ticks (>= 0). ``lanes`` are the ``(device, lane)`` pairs that it occupies all the while: compute,
    communication links, transfers. ``acquire`` memory units are taken on ``device`` at its start, ``release`` units are
    given back there at its end. ``chain`` tells models or graphs side by side apart.
    """

    device: int
    kind: str
    stage: int
    microbatch: int
    duration: int
    lanes: tuple[Lane, ...]
    acquire: int = 0
    release: int = 0
    chain: int = 0

    def __str__(self) -> str:
        chain = f" of chain {self.chain}" if self.chain else ""
        return f"{self.kind}[stage {self.stage}, micro-batch {self.microbatch}]{chain} on device {self.device}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Jobs, precedences and memory.

    ``edges`` are ``(before, after, delay)``: ``start[after] >= end[before] + delay``. ``capacity`` is the number of
    memory units of each device (``None``: unlimited).
    """

    jobs: tuple[Job, ...]
    edges: tuple[Edge, ...]
    capacity: tuple[int | None, ...]


@dataclass(frozen=True)
class Certificate:
    """How good a timetable is, and how that is known.

    ``gap`` is ``(makespan - bound) / makespan``. ``bound_source`` names the argument that proves ``bound``; ``binding``
    the resource that keeps it there. ``baseline`` is the best constructive makespan with the name of its schedule.
    ``status`` is ``"optimal"`` (gap 0), ``"feasible"`` (the deterministic effort was spent), ``"time_limit"`` (the
    wall-clock fuse cut the search) or ``"constructive"`` (nothing was searched).
    """

    status: Status
    makespan: int
    bound: int
    bound_source: str
    baseline: tuple[int, str]
    binding: str
    seed: int = 0
    seconds: float = 0.0
    gap: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gap", (self.makespan - self.bound) / self.makespan if self.makespan else 0.0)

    def __str__(self) -> str:
        return (
            f"{self.status}: makespan {self.makespan}, bound {self.bound} ({self.bound_source}), gap {self.gap:.2%}; "
            f"constructive {self.baseline[0]} ({self.baseline[1]}); bound by {self.binding}; "
            f"seed {self.seed}, {self.seconds:.2f} s"
        )


@dataclass(frozen=True)
class Timetable:
    """A start for every job of ``problem`` (same order) with its certificate."""

    problem: Problem
    starts: tuple[int, ...]
    certificate: Certificate

    @property
    def makespan(self) -> int:
        return self.certificate.makespan


def makespan(problem: Problem, starts: Sequence[int]) -> int:
    """The end of the last job of any device, in ticks."""
    return max((start + job.duration for job, start in zip(problem.jobs, starts, strict=True)), default=0)


def jobs_by_lane(problem: Problem) -> dict[Lane, list[int]]:
    """The indices of the jobs of each lane, lanes in order of first appearance."""
    lanes: dict[Lane, list[int]] = {}
    for index, job in enumerate(problem.jobs):
        for lane in job.lanes:
            lanes.setdefault(lane, []).append(index)
    return lanes


def validate(problem: Problem) -> list[int]:
    """Check that the problem is well formed and return a topological order of its jobs.

    Raises :class:`ScheduleError` on a negative duration, delay or amount of memory, an edge or device out of range, or
    a cycle of edges, which is printed.
    """
    count = len(problem.jobs)
    for job in problem.jobs:
        if job.duration < 0 or job.acquire < 0 or job.release < 0:
            raise ScheduleError(f"{job} has a negative duration or amount of memory", hint="use integers >= 0")
        if not 0 <= job.device < len(problem.capacity):
            raise ScheduleError(f"{job}: there are {len(problem.capacity)} devices", hint="one capacity per device")
    for before, after, delay in problem.edges:
        if not (0 <= before < count and 0 <= after < count):
            raise ScheduleError(f"edge ({before}, {after}) names a job that does not exist", f"there are {count} jobs")
        if delay < 0:
            raise ScheduleError(f"negative delay {delay} between {problem.jobs[before]} and {problem.jobs[after]}")
    return topological_order(problem.jobs, ((before, after) for before, after, _ in problem.edges))


def topological_order(jobs: Sequence[Job], edges: Iterable[tuple[int, int]]) -> list[int]:
    """Indices of ``jobs`` such that every edge points forward; :class:`ScheduleError` prints a cycle."""
    after: list[list[int]] = [[] for _ in jobs]
    waiting = [0] * len(jobs)
    for a, b in edges:
        after[a].append(b)
        waiting[b] += 1
    order = [index for index, count in enumerate(waiting) if count == 0]
    for index in order:
        for successor in after[index]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                order.append(successor)
    if len(order) < len(jobs):
        raise cycle_error(jobs, _find_cycle(after, waiting))
    return order


def cycle_error(jobs: Sequence[Job], cycle: Sequence[int]) -> ScheduleError:
    """The error that prints ``cycle``, one job a line."""
    lines = [f"{jobs[index]} must come before" for index in cycle]
    return ScheduleError(
        "the orders asked for contradict each other: a cycle",
        *lines,
        f"{jobs[cycle[0]]} again",
        hint="drop one of these orders",
    )


def _find_cycle(after: Sequence[Sequence[int]], waiting: Sequence[int]) -> list[int]:
    """A cycle among the jobs that still wait: follow predecessors, each of which waits as well, until one repeats."""
    before = {b: a for a, successors in enumerate(after) if waiting[a] for b in successors if waiting[b]}
    index = next(iter(before))
    seen: dict[int, int] = {}
    path: list[int] = []
    while index not in seen:
        seen[index] = len(path)
        path.append(index)
        index = before[index]
    return path[seen[index] :][::-1]


def verify(problem: Problem, starts: Sequence[int]) -> None:
    """Raise :class:`ScheduleError` naming the dependency, lane or memory that ``starts`` violates, if any."""
    if len(starts) != len(problem.jobs):
        raise ScheduleError(f"{len(starts)} starts for {len(problem.jobs)} jobs")
    for job, start in zip(problem.jobs, starts, strict=True):
        if start < 0:
            raise ScheduleError(f"{job} starts at {start}, before time 0")
    _verify_edges(problem, starts)
    _verify_lanes(problem, starts)
    for device, capacity in enumerate(problem.capacity):
        if capacity is not None:
            _verify_memory(problem, starts, device, capacity)


def _verify_edges(problem: Problem, starts: Sequence[int]) -> None:
    jobs = problem.jobs
    for before, after, delay in problem.edges:
        ready = starts[before] + jobs[before].duration + delay
        if starts[after] < ready:
            raise ScheduleError(
                f"dependency violated: {jobs[after]} starts at {starts[after]}",
                f"it needs {jobs[before]}, ready at {ready} ({delay} of it delay)",
            )


def _verify_lanes(problem: Problem, starts: Sequence[int]) -> None:
    jobs = problem.jobs
    for (device, lane), members in jobs_by_lane(problem).items():
        ordered = sorted(members, key=lambda index: (starts[index], starts[index] + jobs[index].duration))
        for a, b in pairwise(ordered):
            if starts[a] + jobs[a].duration > starts[b]:
                raise ScheduleError(
                    f"lane {lane} of device {device} is taken twice at {starts[b]}",
                    f"{jobs[a]} holds it over [{starts[a]}, {starts[a] + jobs[a].duration})",
                    f"{jobs[b]} starts at {starts[b]}",
                )


def memory_events(problem: Problem, starts: Sequence[int], device: int) -> list[tuple[int, int, int]]:
    """``(time, change, job)`` of the memory of ``device`` in order of time, what is given back before what is taken."""
    events: list[tuple[int, int, int]] = []
    for index, job in enumerate(problem.jobs):
        if job.device != device:
            continue
        if job.acquire:
            events.append((starts[index], job.acquire, index))
        if job.release:
            events.append((starts[index] + job.duration, -job.release, index))
    return sorted(events)


def _verify_memory(problem: Problem, starts: Sequence[int], device: int, capacity: int) -> None:
    level = 0
    for time, change, index in memory_events(problem, starts, device):
        level += change
        if level > capacity:
            raise ScheduleError(
                f"memory of device {device} exceeded at {time}: {level} of {capacity} units",
                f"{problem.jobs[index]} takes {change}",
            )
