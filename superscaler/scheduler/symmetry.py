"""Micro-batches that may change places: where they may, first in first out loses nothing.

If all micro-batches of a chain have the same jobs and the same edges among them, the k-th start of each job can be
given to micro-batch k in any schedule: dependencies and memory still hold. So the order within a job is fixed.
"""

from __future__ import annotations

from collections import defaultdict

from superscaler.scheduler.problem import Job, Problem

Key = tuple[int, str, int, int]


def key(job: Job) -> Key:
    """What ``job`` is, apart from its micro-batch."""
    return (job.device, job.kind, job.stage, job.chain)


def interchangeable(problem: Problem) -> list[list[int]]:
    """Groups of jobs (one per device, kind, stage and chain, by micro-batch) that may be taken first in first out.

    A chain whose micro-batches differ, or are tied to one another by edges, gives no group.
    """
    members: dict[int, dict[int, dict[Key, int]]] = defaultdict(lambda: defaultdict(dict))
    broken: set[int] = set()
    for index, job in enumerate(problem.jobs):
        batch = members[job.chain][job.microbatch]
        if job.microbatch >= 0 and key(job) in batch:
            broken.add(job.chain)
        batch[key(job)] = index
    edges: dict[tuple[int, int], set[tuple[Key, Key, int]]] = defaultdict(set)
    for before, after, delay in problem.edges:
        a, b = problem.jobs[before], problem.jobs[after]
        inner = [job for job in (a, b) if job.microbatch >= 0]
        if len(inner) == 2 and (a.chain, a.microbatch) != (b.chain, b.microbatch):
            broken.update((a.chain, b.chain))
        for job in inner:
            edges[job.chain, job.microbatch].add((key(a), key(b), delay))
    groups: list[list[int]] = []
    for chain, batches in members.items():
        numbers = sorted(number for number in batches if number >= 0)
        if chain in broken or len(numbers) < 2:
            continue
        shapes = {_shape(problem, batches[number]) for number in numbers}
        if len(shapes) == 1 and all(edges[chain, number] == edges[chain, numbers[0]] for number in numbers):
            groups += [[batches[number][name] for number in numbers] for name in batches[numbers[0]]]
    return groups


def _shape(problem: Problem, batch: dict[Key, int]) -> frozenset[tuple[object, ...]]:
    jobs = ((name, problem.jobs[index]) for name, index in batch.items())
    return frozenset((name, job.duration, job.lanes, job.acquire, job.release) for name, job in jobs)
