"""Greedy schedules of a pipeline, one event after another, in about 2 us a task.

A device that is free takes a forward or backward that is ready, waits for one that is known to arrive soon, or fills
in a weight gradient. A :class:`Policy` says which of those first, how many micro-batches may be in flight, and how long
waiting may last. No policy can run out of memory (:class:`Rooms`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product
from math import ceil

from superscaler.scheduler.flow import BACKWARD, FORWARD, NEVER, WEIGHT, Flow, Starts

PREFERENCES = ("forward first", "backward first", "oldest first", "nearest the turn", "late stages first")


@dataclass(frozen=True, slots=True)
class Policy:
    """``reach`` and ``slack`` bound the micro-batches in flight of a stage: ``reach * stages to go + slack``.

    ``patience`` is the share of a weight gradient's duration that a device waits for a known arrival instead. With
    ``early``, a micro-batch may enter a device where others are to give back the places that its later stages need.
    """

    preference: str
    reach: float
    slack: float = 0.0
    patience: float = 0.0
    early: bool = False

    def __str__(self) -> str:
        early = ", early" if self.early else ""
        return f"greedy ({self.preference}, reach {self.reach:g}+{self.slack:g}, patience {self.patience:g}{early})"


def policies(flow: Flow) -> Iterator[tuple[Policy, bool]]:
    """The family, the most often best ones first, and whether to go from the end (see ``greedy_back``).

    With one stage per device only two preferences differ.
    """
    kinds = 2 if flow.stages == flow.devices else len(PREFERENCES)
    first = (
        (Policy("forward first", 1.0), False),
        (Policy("backward first", 9), False),
        (Policy("forward first", 1.0, 0.0, 0.3), False),
        (Policy("forward first", 0.6, flow.devices / 2, 0.3), False),
        (Policy("late stages first", 1.0, 2.0, 0.3), True),
        (Policy("forward first", 0.7, flow.devices / 4, 0.3), False),
        (Policy("late stages first", 1.0, 0.0, 0.3), True),
        (Policy("forward first", 1.0, 0.0, 0.6), False),
    )
    yield from first
    if flow.stages > flow.devices:
        for patience, reach, slack in product((0.3, 0.6), (0.5, 0.6), (0.0, 0.5)):
            for preference in ("forward first", "late stages first"):
                yield Policy(preference, reach, slack, patience, early=True), False
    for patience, reach in product((0.3, 0.0, 0.6), (0.9, 1.0, 0.8, 0.7, 0.6, 0.5, 1.2, 9)):
        for slack, preference, back in product((0.5, 0.0, 2.0), PREFERENCES[:kinds], (True, False)):
            if (candidate := (Policy(preference, reach, slack, patience), back)) not in first:
                yield candidate


@dataclass(frozen=True, slots=True)
class Tuning:
    """A policy for one pipeline: micro-batches in flight per stage; ticks added to the arrival of its forwards and
    its backwards, and per micro-batch, before the earliest is taken; patience; early.
    """

    in_flight: tuple[int, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    aging: float = 0.0
    patience: float = 0.0
    early: bool = False


def tuning(flow: Flow, policy: Policy) -> Tuning:
    """What ``policy`` means for ``flow``."""
    in_flight = tuple(max(1, ceil(policy.reach * (flow.stages - s) + policy.slack)) for s in range(flow.stages))
    forward, backward, aging = offsets(flow, policy.preference)
    return Tuning(in_flight, tuple(forward), tuple(backward), aging, policy.patience, policy.early)


def greedy(flow: Flow, tuned: Tuning, limit: int = NEVER) -> Starts:
    """The schedule that comes of it; nothing if that must become longer than ``limit``."""
    return _Greedy(flow, tuned).play(limit)


def offsets(flow: Flow, preference: str) -> tuple[list[float], list[float], float]:
    """What is added to the time of arrival, by stage, for forwards and backwards, and per micro-batch: lowest first."""
    count = flow.stages
    near = 1 / (4 * count)
    rank = {mine[i]: i for mine in flow.stages_of for i in range(len(mine))}
    none = [0.0] * count
    match preference:
        case "forward first":
            return [-rank[s] / 8 for s in range(count)], [0.25 - rank[s] / 8 for s in range(count)], 0.0
        case "backward first":
            return none, [-0.25] * count, 0.0
        case "oldest first":
            return none, [-near / 2 / (count + 1)] * count, near / (count + 1)
        case "nearest the turn":
            return [-s * near for s in range(count)], [-(2 * count - s) * near for s in range(count)], 0.0
        case _:
            late = [-0.5 * rank[s] for s in range(count)]
            return late, [value - 0.25 for value in late], 0.0


class Rooms:
    """The places for activations on each device, and which of them may be taken without running into a dead end.

    A micro-batch that has been through all stages of a device (in the order of ``stages_of``) needs no more places
    there to give back those that it has. Of the others, the first one must always find a place: a stage leaves one to
    every later stage of its device, of those that are free, or (``early``) that will be when the micro-batches that
    have been through have given theirs back.
    """

    def __init__(self, flow: Flow, early: bool) -> None:
        self.early = early
        self.free = list(flow.capacity)
        self.will_be = list(flow.capacity)
        self.later = {s: len(mine) - 1 - i for mine in flow.stages_of for i, s in enumerate(mine)}
        self.before = [len(mine) - 1 for mine in flow.stages_of]

    def left(self, d: int) -> int:
        """A stage may take a place if more are left than it has later stages."""
        return self.will_be[d] if self.early and self.free[d] else self.free[d]

    def take(self, d: int, s: int) -> None:
        self.free[d] -= 1
        self.will_be[d] += -1 if self.later[s] else self.before[d]

    def give_back(self, d: int) -> None:
        self.free[d] += 1


class _Greedy:
    """One run. The inner loop is written for speed: it visits every task of every candidate schedule."""

    def __init__(self, flow: Flow, tuned: Tuning) -> None:
        self.flow = flow
        self.aging, self.in_flight, self.patience = tuned.aging, tuned.in_flight, tuned.patience
        self.ends: Starts = [[[] for _ in range(flow.stages)] for _ in range(3)]
        self.rooms = Rooms(flow, tuned.early)
        forwards, backwards, weights = self.ends
        source = [0] * flow.microbatches  # there from the beginning
        last = flow.stages - 1
        # Of each stage of a device: what it has done, what it reads, after which delay, and what is added to that.
        self.stages = [
            [
                (
                    s, forwards[s], backwards[s], weights[s],
                    forwards[s - 1] if s else source, flow.into_forward[s] if s else 0, tuned.forward[s],
                    backwards[s + 1] if s < last else forwards[s], flow.into_backward[s] if s < last else 0,
                    tuned.backward[s],
                )
                for s in mine
            ]
            for mine in flow.stages_of
        ]  # fmt: skip

    def play(self, limit: int) -> Starts:
        flow, ends, rooms, choose = self.flow, self.ends, self.rooms, self.choose
        duration, device, last = flow.duration, flow.device, flow.stages - 1
        latest = [limit - flow.microbatches * load for load in flow.load]  # start of what a device has left
        free = [0] * flow.devices
        idle = [False] * flow.devices
        heap = [(0, d) for d in range(flow.devices)]
        while heap:
            now, d = heappop(heap)
            if now < free[d]:
                continue
            kind, s, start = choose(d, now)
            if kind < 0:
                idle[d] = True
                continue
            if start > latest[d]:
                return []
            took = duration[kind][s]
            end = start + took
            latest[d] += took
            ends[kind][s].append(end)
            if kind == FORWARD:
                rooms.take(d, s)
            elif kind == WEIGHT:
                rooms.give_back(d)
            free[d] = end
            heappush(heap, (end, d))
            neighbour = s + 1 if kind == FORWARD else s - 1 if kind == BACKWARD else -1
            if 0 <= neighbour <= last and idle[other := device[neighbour]]:
                idle[other] = False
                heappush(heap, (max(now, free[other]), other))
        return [[[end - duration[k][s] for end in ends[k][s]] for s in range(flow.stages)] for k in range(3)]

    def choose(self, d: int, now: int) -> tuple[int, int, int]:
        """The task that device ``d``, free at ``now``, takes next: kind (-1: none is known), stage, start."""
        kind, stage, start, weight = -1, -1, NEVER, -1
        best = float(NEVER)
        room, later, aging, microbatches = self.rooms.left(d), self.rooms.later, self.aging, self.flow.microbatches
        oldest = NEVER
        for s, forwards, backwards, weights, made, delay, first, returned, delay_back, first_back in self.stages[d]:
            nf, nb, nw = len(forwards), len(backwards), len(weights)
            if nw < nb and backwards[nw] < oldest:
                oldest, weight = backwards[nw], s
            if nb < nf and nb < len(returned):
                at = returned[nb] + delay_back
                if at < now:
                    at = now
                key = at + first_back + nb * aging
                if key < best:
                    best, kind, stage, start = key, BACKWARD, s, at
            if nf - nb < self.in_flight[s] and nf < microbatches and room > later[s] and nf < len(made):
                at = made[nf] + delay
                if at < now:
                    at = now
                key = at + first + nf * aging
                if key < best:
                    best, kind, stage, start = key, FORWARD, s, at
        if weight >= 0 and (kind < 0 or start - now > self.patience * self.flow.duration[WEIGHT][weight]):
            return WEIGHT, weight, now
        return kind, stage, start
