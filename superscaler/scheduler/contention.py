"""Replay on shared cores: workers of one machine that compute at the same time slow each other down.

The tasks and what they wait for are those of :mod:`.replay`; how fast a task proceeds depends on how many workers of
its node compute with it, so it goes from event to event. Cost: tasks × roles that compute at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from superscaler.ir.entry import Entry
from superscaler.scheduler.replay import Durations, Moments, Node, Replay, at_once

Slowdown = Callable[[int], float]  # workers of a node that compute -> how many times longer each takes than alone


def replay_shared(
    entry: Entry, durations: Durations, slowdown: Slowdown, per_node: int, *, posts: Durations = at_once
) -> Replay:
    """Run the entry's Programs in time, ``per_node`` workers sharing the cores of each node."""
    moments = Moments(entry, durations, posts)
    for role, program in enumerate(entry.programs):
        moments.add(role, program, range(len(program.order)))
    moments.meet()
    return _Run(entry, moments, slowdown, per_node).run()


@dataclass
class _Running:
    """What ends at a moment. ``left``: microseconds of its length; ``role``: whose cores it takes, -1 if none;
    ``counts``: for how many of the things that the moment waits for."""

    moment: int
    left: float
    role: int
    counts: int
    rate: float = 1.0
    cause: int = -1


@dataclass
class _Run:
    entry: Entry
    moments: Moments
    slowdown: Slowdown
    per_node: int
    now: float = 0.0
    running: list[_Running] = field(default_factory=list[_Running])

    def run(self) -> Replay:
        after = self.moments.after
        count = len(after)
        self.times, self.begun, self.causes = [0.0] * count, [0.0] * count, [-1] * count
        self.waiting = [len(before) for before in after]
        self.unstarted = [sum(delay > 0 for _, delay in before) for before in after]
        self.later: list[list[tuple[int, int]]] = [[] for _ in after]
        for moment, before in enumerate(after):
            for earlier, delay in before:
                self.later[earlier].append((moment, delay))
        self._fire([m for m, left in enumerate(self.waiting) if not left])
        while self.running:
            self._advance()
        return self._found()

    def _is_task(self, moment: int) -> bool:
        """Whether a moment is the end of a task, which takes its time after all that it comes after with a delay."""
        return moment % 2 == 1 and moment < 2 * len(self.moments.nodes)

    def _fire(self, ready: list[int]) -> None:
        """Moments that have come, with all that come with them."""
        for moment in ready:
            self.times[moment] = self.now
            for other, delay in self.later[moment]:
                if not delay:
                    self._arrive(other, moment, ready)
                elif not self._is_task(other):
                    self.running.append(_Running(other, float(delay), -1, 1, cause=moment))
                else:
                    self.unstarted[other] -= 1
                    if not self.unstarted[other]:
                        self._begin(other, moment)
        self._share()

    def _arrive(self, moment: int, cause: int, ready: list[int], count: int = 1) -> None:
        """So many of the things that a moment waits for have come."""
        self.waiting[moment] -= count
        if not self.waiting[moment]:
            self.causes[moment] = cause
            ready.append(moment)

    def _begin(self, moment: int, cause: int) -> None:
        role, item = self.moments.nodes[moment // 2]
        program = self.entry.programs[role]
        computes = program.blocks[program.order[item].block].lane == "compute"
        self.begun[moment] = self.now
        before = sum(delay > 0 for _, delay in self.moments.after[moment])
        length = float(self.moments.lengths[moment // 2])
        self.running.append(_Running(moment, length, role if computes else -1, before, cause=cause))

    def _share(self) -> None:
        """How fast each task proceeds from now on."""
        busy: dict[int, int] = {}
        for role in {task.role for task in self.running if task.role >= 0}:
            for worker in self.entry.programs[role].workers:
                busy[worker // self.per_node] = busy.get(worker // self.per_node, 0) + 1
        for task in self.running:
            if task.role >= 0:
                nodes = {worker // self.per_node for worker in self.entry.programs[task.role].workers}
                task.rate = 1.0 / self.slowdown(max(busy[node] for node in nodes))

    def _advance(self) -> None:
        """To the next end of a task."""
        step = min(task.left / task.rate for task in self.running)
        self.now += step
        ready: list[int] = []
        left: list[_Running] = []
        for task in self.running:
            task.left -= step * task.rate
            if task.left > 1e-6:
                left.append(task)
            else:
                self._arrive(task.moment, task.cause, ready, task.counts)
        self.running = left
        self._fire(ready)

    def _found(self) -> Replay:
        counts = [len(p.order) for p in self.entry.programs]
        found = Replay([[0] * n for n in counts], [[0] * n for n in counts], [[None] * n for n in counts])
        for task, (role, item) in enumerate(self.moments.nodes):
            over = 2 * task + 1
            found.starts[role][item] = round(self.begun[over])
            found.ends[role][item] = round(self.times[over])
            found.causes[role][item] = self._cause(task)
        return found

    def _cause(self, task: int) -> Node | None:
        moment = 2 * task + 1
        while self.causes[moment] >= 0:
            moment = self.causes[moment]
            if self._is_task(moment) and moment // 2 != task:
                return self.moments.nodes[moment // 2]
        return None
