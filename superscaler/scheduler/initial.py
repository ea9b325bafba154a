"""Schedules of any problem to start from: list schedules by several priorities, and one job after another."""

from __future__ import annotations

from collections.abc import Callable

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


def one_after_another(problem: Problem) -> tuple[int, ...] | None:
    """Every job after the one before it, micro-batch by micro-batch: holds the least memory; None if that fails."""
    order = sorted(validate(problem), key=lambda index: problem.jobs[index].microbatch)
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
