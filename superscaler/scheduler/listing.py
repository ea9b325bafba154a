"""List scheduling: from an order, or from priorities, to starts, one event after another.

No job waits for anything but its predecessors, its lanes, memory and (with an order) its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise

from superscaler.errors import ScheduleError
from superscaler.scheduler.problem import Lane, Problem, topological_order

LaneOrder = Mapping[Lane, Sequence[int]]
Priority = Sequence[float]

_END, _READY = 0, 1


def list_schedule(problem: Problem, order: LaneOrder | Priority) -> tuple[int, ...]:
    """Starts of the jobs of ``problem``, each as early as ``order`` allows.

    ``order`` is either the order of the jobs (indices) on each lane, lanes left out being first come first served; or
    one priority per job, the lowest ready one that fits in memory going first. Raises :class:`ScheduleError` when the
    jobs cannot all be placed: the orders contradict each other (the cycle is printed) or memory runs out.
    """
    run = _Run(problem, order)
    run.play()
    if any(start < 0 for start in run.starts):
        raise _stuck(problem, order, run)
    return tuple(run.starts)


class _Run:
    """The state of one simulation."""

    def __init__(self, problem: Problem, order: LaneOrder | Priority) -> None:
        jobs = problem.jobs
        self.jobs = jobs
        self.starts = [-1] * len(jobs)
        self.level = [0] * len(problem.capacity)
        self.capacity = problem.capacity
        self.after: list[list[tuple[int, int]]] = [[] for _ in jobs]
        self.waiting = [0] * len(jobs)
        for before, after, delay in problem.edges:
            self.after[before].append((after, delay))
            self.waiting[after] += 1
        self.ready = [0] * len(jobs)
        self.busy: set[Lane] = set()
        self.queues: dict[Lane, list[tuple[float, int]]] = {lane: [] for job in jobs for lane in job.lanes}
        self.turns: dict[Lane, Sequence[int]] = dict(order) if isinstance(order, Mapping) else {}
        self.turn = dict.fromkeys(self.turns, 0)
        self.priority: Priority | None = None if isinstance(order, Mapping) else order
        self.short: list[dict[Lane | int, None]] = [{} for _ in problem.capacity]
        self.events: list[tuple[int, int, int]] = [
            (0, _READY, index) for index, count in enumerate(self.waiting) if count == 0
        ]

    def play(self) -> None:
        """Run until no event is left."""
        events = self.events
        while events:
            now = events[0][0]
            awake: dict[Lane | int, None] = {}
            while events and events[0][0] == now:
                _, what, index = heappop(events)
                if what == _END:
                    self.end(index, now, awake)
                else:
                    self.arrive(index, now, awake)
            for place in awake:
                self.dispatch(place, now)

    def end(self, index: int, now: int, awake: dict[Lane | int, None]) -> None:
        job = self.jobs[index]
        for lane in job.lanes:
            self.busy.discard(lane)
            awake[lane] = None
        if job.release:
            self.level[job.device] -= job.release
            awake.update(self.short[job.device])
            self.short[job.device].clear()
        for successor, delay in self.after[index]:
            self.waiting[successor] -= 1
            self.ready[successor] = max(self.ready[successor], now + delay)
            if self.waiting[successor] == 0:
                heappush(self.events, (self.ready[successor], _READY, successor))

    def arrive(self, index: int, now: int, awake: dict[Lane | int, None]) -> None:
        lanes = self.jobs[index].lanes
        key = float(now) if self.priority is None else self.priority[index]
        for lane in lanes:
            heappush(self.queues[lane], (key, index))
            awake[lane] = None
        if not lanes:
            awake[index] = None

    def dispatch(self, place: Lane | int, now: int) -> None:
        """Start what can start now on a lane, or the job ``place`` that needs no lane."""
        if isinstance(place, int):
            self.start(place, now) if self.fits(place, place) else None
        elif place in self.turns:
            turns = self.turns[place]
            if self.turn[place] < len(turns):
                self.attempt(turns[self.turn[place]], place, now)
        elif place not in self.busy:
            self.first_that_fits(place, now)

    def first_that_fits(self, lane: Lane, now: int) -> None:
        queue = self.queues[lane]
        passed: list[tuple[float, int]] = []
        while queue:
            key, index = heappop(queue)
            if self.starts[index] >= 0:
                continue
            if self.attempt(index, lane, now):
                break
            passed.append((key, index))
        for entry in passed:
            heappush(queue, entry)

    def attempt(self, index: int, lane: Lane, now: int) -> bool:
        """Start the job if it has arrived, it is its turn everywhere, its lanes are free and memory holds it."""
        if self.starts[index] >= 0 or self.waiting[index] or self.ready[index] > now:
            return False
        for other in self.jobs[index].lanes:
            turns = self.turns.get(other)
            if other in self.busy or (turns is not None and turns[self.turn[other]] != index):
                return False
        if not self.fits(index, lane):
            return False
        self.start(index, now)
        return True

    def fits(self, index: int, place: Lane | int) -> bool:
        job = self.jobs[index]
        capacity = self.capacity[job.device]
        if not job.acquire or capacity is None or self.level[job.device] + job.acquire <= capacity:
            return True
        self.short[job.device][place] = None
        return False

    def start(self, index: int, now: int) -> None:
        job = self.jobs[index]
        self.starts[index] = now
        self.level[job.device] += job.acquire
        for lane in job.lanes:
            self.busy.add(lane)
            if lane in self.turn:
                self.turn[lane] += 1
        heappush(self.events, (now + job.duration, _END, index))


def _stuck(problem: Problem, order: LaneOrder | Priority, run: _Run) -> ScheduleError:
    """Why nothing could go on: a missing job, a cycle (raised from here), or memory."""
    edges = [(before, after) for before, after, _ in problem.edges]
    if isinstance(order, Mapping):
        for lane, turns in order.items():
            members = {index for index, job in enumerate(problem.jobs) if lane in job.lanes}
            if members != set(turns) or len(turns) != len(members):
                odd = members.symmetric_difference(turns)
                names = ", ".join(str(problem.jobs[index]) for index in sorted(odd)[:3]) or "a job comes twice"
                return ScheduleError(
                    f"the order of {lane} does not name each of its jobs once",
                    names,
                    hint="all jobs of a lane, or none",
                )
        edges += [pair for turns in order.values() for pair in pairwise(turns)]
    topological_order(problem.jobs, edges)
    blocked = next(
        index
        for index, start in enumerate(run.starts)
        if start < 0 and not run.waiting[index] and _takes(problem, index)
    )
    job = problem.jobs[blocked]
    return ScheduleError(
        f"the order runs out of memory on device {job.device}",
        f"{job} needs {job.acquire} units, {run.level[job.device]} of {problem.capacity[job.device]} are taken",
        "and everything that would give some back waits for it",
        hint="another order, or more memory",
    )


def _takes(problem: Problem, index: int) -> bool:
    return problem.jobs[index].acquire > 0
