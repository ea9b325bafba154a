"""A pipeline as plain arrays, for the passes that visit every task of it many times.

Kinds are numbered: forward 0, backward (input gradient) 1, weight gradient 2. ``Starts`` is indexed by kind, stage and
micro-batch. Within a stage micro-batches go first in first out, which loses nothing: they may change places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd

from superscaler.scheduler.pipeline import KINDS, PipelineProblem

FORWARD, BACKWARD, WEIGHT = range(3)
Starts = list[list[list[int]]]
Task = tuple[int, int, int]
"""kind, stage, micro-batch"""
NEVER = 1 << 60


@dataclass(frozen=True)
class Flow:
    """Durations, delays and memory of a pipeline whose communication is a delay.

    ``device[s]``; ``duration[kind][s]``; ``into_forward[s]`` is the delay between the end of the forward of stage s-1
    and the start of that of stage s, ``into_backward[s]`` likewise from stage s+1; ``capacity[d]`` in activations.
    """

    device: tuple[int, ...]
    duration: tuple[tuple[int, ...], ...]
    into_forward: tuple[int, ...]
    into_backward: tuple[int, ...]
    capacity: tuple[int, ...]
    microbatches: int

    @property
    def stages(self) -> int:
        return len(self.device)

    @property
    def devices(self) -> int:
        return len(self.capacity)

    @property
    def tasks(self) -> int:
        """The number of compute tasks."""
        return 3 * self.stages * self.microbatches

    @cached_property
    def stages_of(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each device, in order."""
        return tuple(tuple(s for s, d in enumerate(self.device) if d == e) for e in range(self.devices))

    @cached_property
    def load(self) -> tuple[int, ...]:
        """Busy ticks of each device for one micro-batch."""
        return tuple(sum(self.duration[k][s] for k in range(3) for s in mine) for mine in self.stages_of)

    @cached_property
    def head(self) -> tuple[int, ...]:
        """For each device the ticks before its first forward, if nothing waits."""
        forward = self.duration[FORWARD]
        reach = [0] * self.stages
        for s in range(1, self.stages):
            reach[s] = reach[s - 1] + forward[s - 1] + self.into_forward[s]
        return tuple(min(reach[s] for s in mine) for mine in self.stages_of)

    @cached_property
    def tick(self) -> int:
        """The common divisor of all durations and delays."""
        numbers = [n for row in (*self.duration, self.into_forward, self.into_backward) for n in row]
        return gcd(*numbers)

    @cached_property
    def round_trip(self) -> tuple[int, ...]:
        """For each stage the ticks from the start of a forward to the start of its backward, if nothing waits."""
        f, b, _ = self.duration
        trip = [f[-1]] * self.stages
        for s in range(self.stages - 2, -1, -1):
            trip[s] = trip[s + 1] + f[s] + self.into_forward[s + 1] + b[s + 1] + self.into_backward[s]
        return tuple(trip)

    def predecessors(self, task: Task) -> Iterator[tuple[Task, int]]:
        """What ``task`` waits for, with the delay after its end."""
        kind, s, j = task
        if kind == FORWARD:
            if s:
                yield (FORWARD, s - 1, j), self.into_forward[s]
            return
        yield (kind - 1, s, j), 0
        if kind == BACKWARD and s + 1 < self.stages:
            yield (BACKWARD, s + 1, j), self.into_backward[s]

    def successors(self, task: Task) -> Iterator[tuple[Task, int]]:
        """What waits for ``task``, with the delay after its end."""
        kind, s, j = task
        if kind != WEIGHT:
            yield (kind + 1, s, j), 0
        if kind == FORWARD and s + 1 < self.stages:
            yield (FORWARD, s + 1, j), self.into_forward[s + 1]
        if kind == BACKWARD and s:
            yield (BACKWARD, s - 1, j), self.into_backward[s - 1]

    def makespan(self, starts: Starts) -> int:
        """The end of the last task of any device: of a weight gradient, since everything leads to one."""
        return max(row[-1] + self.duration[WEIGHT][s] for s, row in enumerate(starts[WEIGHT]))

    def with_microbatches(self, microbatches: int) -> Flow:
        """The same pipeline for another number of micro-batches."""
        return Flow(self.device, self.duration, self.into_forward, self.into_backward, self.capacity, microbatches)

    def with_capacity(self, capacity: tuple[int, ...]) -> Flow:
        """The same pipeline with other memories."""
        return Flow(self.device, self.duration, self.into_forward, self.into_backward, capacity, self.microbatches)

    def with_delays(self, share: float) -> Flow:
        """The same pipeline with its delays ``share`` times as long."""
        down, up = (tuple(round(share * n) for n in row) for row in (self.into_forward, self.into_backward))
        return Flow(self.device, self.duration, down, up, self.capacity, self.microbatches)


def flow_of(problem: PipelineProblem) -> Flow:
    """``problem`` as arrays. Its communication must be a delay, its stages the same place for every micro-batch."""
    shape = problem.shape
    device = tuple(shape.device(s) for s in range(problem.stages))
    crosses = [problem.comm if a != b else 0 for a, b in pairwise(device)]
    unlimited = problem.stages * problem.microbatches
    return Flow(
        device,
        tuple(problem.durations(kind) for kind in KINDS),
        (0, *crosses),
        (*crosses, 0),
        tuple(unlimited if limit is None else limit for limit in problem.limits),
        problem.microbatches,
    )
