"""Schedules of any problem to start from: list schedules by several priorities, and one job after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from superscaler.errors import ScheduleError
from superscaler.scheduler.bounds import heads_and_tails
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Problem, makespan, validate, verify

Known = dict[str, tuple[int, ...]]


def constructive(problem: Problem, stop: Callable[[], bool] = lambda: False) -> Known:
    """List schedules by several priorities, by name, until ``stop``; those that run out of memory are left out."""
    if stop():
        return {}
    heads, tails = heads_and_tails(problem)
    jobs = problem.jobs
    far = max(heads, default=0) + max(tails, default=0) + 1
    priorities: dict[str, list[float]] = {
        "longest tail first": [-tail for tail in tails],
        "micro-batch by micro-batch": [job.microbatch * far + heads[i] for i, job in enumerate(jobs)],
        "latest stage first": [-head for head in heads],
        "give memory back first": [(0 if job.release else far) - tails[i] for i, job in enumerate(jobs)],
    }
    found: Known = {}
    for name, priority in priorities.items():
        if found and stop():
            break
        try:
            found[name] = list_schedule(problem, priority)
        except ScheduleError:
            continue
    if not found and (starts := one_after_another(problem)) is not None:
        found["one after another"] = starts
    return found


def best(problem: Problem, known: Known) -> tuple[str, tuple[int, ...]]:
    """The shortest of ``known``, of which there is one at least (the first of equals)."""
    name = min(known, key=lambda name: makespan(problem, known[name]))
    return name, known[name]


def one_after_another(problem: Problem, urgency: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """Every job after the one before it, micro-batch by micro-batch: holds the least memory; None if that fails.

    ``urgency``: of each job, which goes first within a micro-batch; without, what depends on least.
    """
    topological = validate(problem)
    turn = _turns(problem, topological)
    order = sorted(topological, key=lambda index: (turn[index], urgency[index] if urgency else 0))
    position = {index: place for place, index in enumerate(order)}
    if any(position[a] > position[b] for a, b, _ in problem.edges):
        return None
    after: list[list[tuple[int, int]]] = [[] for _ in order]
    for before, successor, delay in problem.edges:
        after[before].append((successor, delay))
    starts, ready, now = [0] * len(order), [0] * len(order), 0
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


def _turns(problem: Problem, topological: Sequence[int]) -> list[int]:
    """The micro-batch of each job; of one that belongs to none, the last before it."""
    turns = [job.microbatch for job in problem.jobs]
    before: list[list[int]] = [[] for _ in turns]
    for a, b, _ in problem.edges:
        before[b].append(a)
    for index in topological:
        if turns[index] < 0:
            turns[index] = max((turns[a] for a in before[index]), default=-1)
    return turns
