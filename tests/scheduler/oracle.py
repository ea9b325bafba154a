"""An exhaustive scheduler, written apart from everything it judges: depth-first over all semi-active schedules."""

from __future__ import annotations

import random
from dataclasses import replace

from superscaler.scheduler.pipeline import PipelineProblem, to_problem
from superscaler.scheduler.problem import Edge, Job, Problem


def shortest(problem: Problem) -> int | None:
    """The optimal makespan by branching on which job is placed next, each as early as what is placed allows.

    Every order of placement in which starts never decrease is tried, so an optimal schedule is among them. Memory is
    counted in the order of starts. None if nothing fits.
    """
    return _Exhaustive(problem).run()


def possible(problem: Problem) -> bool:
    """Whether any schedule is within memory, by trying every order: one job at a time holds least in any order."""
    jobs, everything = problem.jobs, frozenset(range(len(problem.jobs)))
    before = [{a for a, b, _ in problem.edges if b == i} for i in everything]
    seen: set[frozenset[int]] = set()
    left: list[frozenset[int]] = [frozenset()]
    while left:
        done = left.pop()
        if done == everything:
            return True
        for i in everything - done:
            device, capacity = jobs[i].device, problem.capacity[jobs[i].device]
            held = sum(jobs[k].acquire - jobs[k].release for k in done if jobs[k].device == device)
            roomy = capacity is None or not jobs[i].acquire or held + jobs[i].acquire <= capacity
            if before[i] <= done and roomy and (after := done | {i}) not in seen:
                seen.add(after)
                left.append(after)
    return False


class _Exhaustive:
    def __init__(self, problem: Problem) -> None:
        self.jobs = problem.jobs
        self.capacity = problem.capacity
        self.before: list[list[tuple[int, int]]] = [[] for _ in self.jobs]
        self.after: list[list[tuple[int, int]]] = [[] for _ in self.jobs]
        for a, b, delay in problem.edges:
            self.before[b].append((a, delay))
            self.after[a].append((b, delay))
        self.tail = [0] * len(self.jobs)
        for _ in self.jobs:
            for i, job in enumerate(self.jobs):
                rest = max((delay + self.tail[b] for b, delay in self.after[i]), default=0)
                self.tail[i] = job.duration + rest
        self.best: int | None = None
        self.seen: set[object] = set()

    def run(self) -> int | None:
        self.branch({}, 0)
        return self.best

    def branch(self, ends: dict[int, int], now: int) -> None:
        if len(ends) == len(self.jobs):
            length = max(ends.values())
            self.best = length if self.best is None else min(self.best, length)
            return
        state = (now, frozenset((i, max(end, now)) for i, end in ends.items()))
        if state in self.seen or self.hopeless(ends, now):
            return
        self.seen.add(state)
        starts = {i: self.earliest(i, ends, now) for i in range(len(self.jobs)) if i not in ends}
        for i, start in sorted(starts.items(), key=lambda item: (item[1] is None, item[1])):
            if start is None or self.skips(i, ends) or (self.best is not None and start + self.tail[i] >= self.best):
                continue
            self.branch({**ends, i: start + self.jobs[i].duration}, start)

    def hopeless(self, ends: dict[int, int], now: int) -> bool:
        """Whether what is left on some lane alone takes too long."""
        left: dict[object, int] = {}
        for i, job in enumerate(self.jobs):
            if i not in ends:
                for lane in job.lanes:
                    left[lane] = left.get(lane, 0) + job.duration
        return self.best is not None and any(now + work >= self.best for work in left.values())

    def skips(self, i: int, ends: dict[int, int]) -> bool:
        """Equal micro-batches may enter in the order of their numbers."""
        job = self.jobs[i]
        return not self.before[i] and any(
            k not in ends and not self.before[k] and other.chain == job.chain and other.microbatch < job.microbatch
            for k, other in enumerate(self.jobs)
        )

    def earliest(self, i: int, ends: dict[int, int], now: int) -> int | None:
        job, start = self.jobs[i], now
        for a, delay in self.before[i]:
            if a not in ends:
                return None
            start = max(start, ends[a] + delay)
        for other, end in ends.items():
            if set(self.jobs[other].lanes) & set(job.lanes):
                start = max(start, end)
        return self.memory(job.device, job.acquire, start, ends)

    def memory(self, device: int, need: int, start: int, ends: dict[int, int]) -> int | None:
        """The earliest time from ``start`` at which ``need`` units are free, given what is placed."""
        capacity = self.capacity[device]
        if not need or capacity is None:
            return start
        mine = [i for i in ends if self.jobs[i].device == device]
        for time in sorted({start, *(ends[i] for i in mine if ends[i] > start)}):
            level = sum(self.jobs[i].acquire for i in mine) - sum(self.jobs[i].release for i in mine if ends[i] <= time)
            if level + need <= capacity:
                return time
        return None


def random_pipeline(seed: int) -> PipelineProblem:
    """A pipeline small enough for :func:`shortest`: linear or V, uneven, with communication and memory."""
    draw = random.Random(seed)
    placement = draw.choice(("linear", "v"))
    devices = draw.choice((1, 2)) if placement == "v" else draw.choice((2, 3))
    stages = devices * 2 if placement == "v" else devices
    count = draw.choice((2, 3)) if stages <= 2 else 2
    forward, backward, weight = (tuple(draw.randint(1, 4) for _ in range(stages)) for _ in range(3))
    least = 2 if placement == "v" else 1
    return PipelineProblem(
        stages,
        count,
        forward,
        backward,
        weight,
        comm=draw.choice((0, 0, 1, 2, 5)),
        max_activations=draw.choice((None, least, least + 1)),
        placement=placement,
    )


def random_side_by_side(seed: int) -> Problem:
    """Two or three independent pipelines that share devices of different speed and memory, in any order of devices."""
    draw = random.Random(seed)
    devices = draw.choice((1, 2, 2, 3))
    jobs: list[Job] = []
    edges: list[Edge] = []
    for chain in range(draw.choice((2, 2, 3)) if devices < 3 else 2):
        placement = draw.choice(("linear", "interleaved") if devices == 3 else ("linear", "v"))
        stages = 2 * devices if placement == "v" else devices
        costs = [tuple(draw.randint(1, 5) for _ in range(stages)) for _ in range(3)]
        count = draw.choice((1, 2)) if stages == 1 else 1
        speed = tuple(draw.choice((1, 2)) for _ in range(devices))
        asked = PipelineProblem(
            stages, count, *costs, comm=draw.choice((0, 0, 1, 4)), placement=placement, devices=devices, speed=speed
        )
        plain, units, place = to_problem(asked), draw.choice((1, 1, 2, 3)), draw.sample(range(devices), devices)
        edges += [(a + len(jobs), b + len(jobs), delay) for a, b, delay in plain.edges]
        jobs += [
            replace(
                job, device=place[job.device], lanes=tuple((place[d], lane) for d, lane in job.lanes),
                chain=chain, acquire=units * job.acquire, release=units * job.release,
            )
            for job in plain.jobs
        ]  # fmt: skip
    return Problem(tuple(jobs), tuple(edges), tuple(draw.choice((None, 2, 3, 4, 6)) for _ in range(devices)))


__all__ = ["possible", "random_pipeline", "random_side_by_side", "shortest", "to_problem"]
