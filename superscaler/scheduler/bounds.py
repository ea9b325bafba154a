"""Lower bounds on the makespan of any problem, without search: lanes, the critical path, memory.

Each is a relaxation, so none can exceed a feasible schedule. The lane bound is the preemptive one-machine schedule
with heads and tails (Jackson 1955; Carlier 1982), the memory bound counts units times ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from superscaler.scheduler.problem import Problem, jobs_by_lane, topological_order
from superscaler.scheduler.symmetry import interchangeable


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven lower bound in ticks, the argument (``source``) and the resource that binds."""

    value: int
    source: str
    binding: str


def heads_and_tails(problem: Problem) -> tuple[list[int], list[int]]:
    """For each job the least ticks before its start (head) and after its end (tail), by precedence alone."""
    jobs = problem.jobs
    heads, tails = [0] * len(jobs), [0] * len(jobs)
    order = topological_order(jobs, ((before, after) for before, after, _ in problem.edges))
    after: list[list[tuple[int, int]]] = [[] for _ in jobs]
    for before, successor, delay in problem.edges:
        after[before].append((successor, delay))
    for index in order:
        end = heads[index] + jobs[index].duration
        for successor, delay in after[index]:
            heads[successor] = max(heads[successor], end + delay)
    for index in reversed(order):
        tails[index] = max((delay + jobs[s].duration + tails[s] for s, delay in after[index]), default=0)
    return heads, tails


def one_machine(heads: Sequence[int], durations: Sequence[int], tails: Sequence[int]) -> int:
    """The preemptive one-machine optimum with heads and tails: longest tail first among what has arrived."""
    arrivals = sorted(range(len(heads)), key=lambda index: heads[index])
    left = list(durations)
    queue: list[tuple[int, int]] = []
    now, latest, position = 0, 0, 0
    while queue or position < len(arrivals):
        if not queue:
            now = max(now, heads[arrivals[position]])
        while position < len(arrivals) and heads[arrivals[position]] <= now:
            heappush(queue, (-tails[arrivals[position]], arrivals[position]))
            position += 1
        until = heads[arrivals[position]] if position < len(arrivals) else None
        negated_tail, index = queue[0]
        run = left[index] if until is None else min(left[index], until - now)
        now += run
        left[index] -= run
        if left[index] == 0:
            heappop(queue)
            latest = max(latest, now - negated_tail)
    return latest


def closed_form(problem: Problem) -> Bound:
    """The best of the lane, critical-path and memory bounds."""
    heads, tails = heads_and_tails(problem)
    jobs = problem.jobs
    path = max((heads[i] + job.duration + tails[i] for i, job in enumerate(jobs)), default=0)
    best = Bound(path, "critical path", "the critical path")
    for (device, lane), members in sorted(jobs_by_lane(problem).items()):
        value = one_machine(
            [heads[i] for i in members], [jobs[i].duration for i in members], [tails[i] for i in members]
        )
        if value > best.value:
            best = Bound(value, "one lane with heads and tails", f"lane {lane} of device {device}")
    chains = _Chains(problem) if any(problem.capacity) else None
    for device, capacity in enumerate(problem.capacity):
        if capacity and chains is not None:
            value = _memory_bound(problem, chains, device, capacity)
            if value > best.value:
                best = Bound(value, "memory units times ticks", f"memory of device {device}")
    return best


def _memory_bound(problem: Problem, chains: _Chains, device: int, capacity: int) -> int:
    """``capacity * T >= sum of units * ticks``: a unit is held at least as long as the chain to what gives it back.

    Needs every taking job of the device to have one giving job of its chain, stage and micro-batch; otherwise 0.
    """
    jobs = problem.jobs
    here = [i for i, job in enumerate(jobs) if job.device == device]
    givers = {(jobs[i].chain, jobs[i].stage, jobs[i].microbatch): i for i in here if jobs[i].release}
    takers = {(jobs[i].chain, jobs[i].stage, jobs[i].microbatch): i for i in here if jobs[i].acquire}
    counted = sum(1 for i in here if jobs[i].acquire), sum(1 for i in here if jobs[i].release)
    if givers.keys() != takers.keys() or counted != (len(takers), len(givers)):
        return 0
    if any(jobs[takers[key]].acquire != jobs[giver].release for key, giver in givers.items()):
        return 0
    held = (jobs[taker].acquire * chains.longest(taker, givers[key]) for key, taker in takers.items())
    return -(-sum(held) // capacity)


class _Chains:
    """The longest chains within micro-batches; where these are all alike, looked for in one."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.after = _within_microbatches(problem)
        self.like = {index: group[0] for group in interchangeable(problem) for index in group}
        self.known: dict[tuple[int, int], int] = {}

    def longest(self, source: int, target: int) -> int:
        """The ticks from the start of ``source`` to the end of ``target``, a job of the same micro-batch."""
        alike = self.like.get(source, source), self.like.get(target, target)
        if alike not in self.known:
            self.known[alike] = _longest(self.problem, self.after, source, target)
        return self.known[alike]


def _within_microbatches(problem: Problem) -> list[list[tuple[int, int]]]:
    """Successors with delays, edges between micro-batches or chains left out."""
    after: list[list[tuple[int, int]]] = [[] for _ in problem.jobs]
    for before, successor, delay in problem.edges:
        a, b = problem.jobs[before], problem.jobs[successor]
        if (a.microbatch, a.chain) == (b.microbatch, b.chain):
            after[before].append((successor, delay))
    return after


def _longest(problem: Problem, after: Sequence[Sequence[tuple[int, int]]], source: int, target: int) -> int:
    """The longest chain from the start of ``source`` to the end of ``target``; 0 if none leads there."""
    reached: list[int] = []
    seen = {source}
    stack: list[tuple[int, int]] = [(source, 0)]
    while stack:
        index, position = stack.pop()
        if position == len(after[index]):
            reached.append(index)
            continue
        stack.append((index, position + 1))
        successor = after[index][position][0]
        if successor not in seen:
            seen.add(successor)
            stack.append((successor, 0))
    ends = {source: problem.jobs[source].duration}
    for index in reversed(reached):
        for successor, delay in after[index]:
            end = ends[index] + delay + problem.jobs[successor].duration
            ends[successor] = max(ends.get(successor, 0), end)
    return ends.get(target, 0)
