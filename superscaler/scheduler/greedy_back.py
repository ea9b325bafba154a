"""Greedy schedules made from their end: the pipeline is filled backwards in time, so it drains well.

Backwards, a weight gradient comes before the backward of its stage, backwards travel from the first stage to the last
and forwards back; memory is taken by the weight gradient and given back by the forward. While a device waits it takes
weight gradients ahead of need: read forwards, these are what fills it while the last backwards trickle in.
"""

from __future__ import annotations

from heapq import heappop, heappush

from superscaler.scheduler.flow import BACKWARD, FORWARD, NEVER, WEIGHT, Flow, Starts
from superscaler.scheduler.greedy import Rooms, Tuning


def greedy_back(flow: Flow, tuned: Tuning) -> Starts:
    """The schedule that comes of ``tuned`` from the end; backwards precede forwards there."""
    run = _GreedyBack(flow, tuned)
    run.play()
    total = max(row[-1] for row in run.ends[FORWARD])
    return [[[total - end for end in reversed(row)] for row in kind] for kind in run.ends]


class _GreedyBack:
    """One run. Times count from the end; ``ends`` are ends in that sense, micro-batches from the last one."""

    def __init__(self, flow: Flow, tuned: Tuning) -> None:
        self.flow = flow
        self.forward_first, self.backward_first = tuned.forward, tuned.backward
        self.aging, self.in_flight, self.patience = tuned.aging, tuned.in_flight, tuned.patience
        self.ends: Starts = [[[] for _ in range(flow.stages)] for _ in range(3)]
        self.rooms = Rooms(flow, tuned.early)

    def play(self) -> None:
        flow = self.flow
        free, idle = [0] * flow.devices, [False] * flow.devices
        heap = [(0, d) for d in range(flow.devices)]
        while heap:
            now, d = heappop(heap)
            if now < free[d]:
                continue
            kind, s, start = self.choose(d, now)
            if kind < 0:
                idle[d] = True
                continue
            free[d] = start + flow.duration[kind][s]
            self.ends[kind][s].append(free[d])
            if kind == WEIGHT:
                self.rooms.take(d, s)
            elif kind == FORWARD:
                self.rooms.give_back(d)
            heappush(heap, (free[d], d))
            neighbour = s - 1 if kind == FORWARD else s + 1 if kind == BACKWARD else -1
            if 0 <= neighbour < flow.stages and idle[other := flow.device[neighbour]]:
                idle[other] = False
                heappush(heap, (max(now, free[other]), other))

    def choose(self, d: int, now: int) -> tuple[int, int, int]:
        """What device ``d`` takes at ``now``: kind (-1: nothing is known), stage, start."""
        kind, stage, start = -1, -1, NEVER
        best = float(NEVER)
        forwards, backwards, weights = self.ends
        room, later = self.rooms.left(d), self.rooms.later
        filler, lead = -1, NEVER
        # A later stage never takes memory for a micro-batch before the earlier ones of its device have: no dead end.
        allowed = self.flow.microbatches
        for s in self.flow.stages_of[d]:
            nf, nb, nw = len(forwards[s]), len(backwards[s]), len(weights[s])
            if nf < nb and (arrival := self.forward_arrival(s, nf)) < NEVER:
                at = max(arrival, now)
                key = at + self.forward_first[s] + nf * self.aging
                if key < best:
                    best, kind, stage, start = key, FORWARD, s, at
            fits = room > later[s] and nw < allowed
            allowed = nw
            if fits and nw - nb < lead:
                filler, lead = s, nw - nb
            if nb < self.flow.microbatches and nb - nf < self.in_flight[s] and (nw > nb or fits):
                arrival = self.backward_arrival(s, nb)
                if arrival < NEVER:
                    # Its weight gradient goes first, so as to end when the backward arrives.
                    early = 0 if nw > nb else self.flow.duration[WEIGHT][s]
                    at = max(arrival - early, now)
                    key = at + self.backward_first[s] + nb * self.aging
                    if key < best:
                        best, kind, stage, start = key, BACKWARD if nw > nb else WEIGHT, s, at
        if filler >= 0 and (kind < 0 or start - now > self.patience * self.flow.duration[WEIGHT][filler]):
            return WEIGHT, filler, now
        return kind, stage, start

    def backward_arrival(self, s: int, j: int) -> int:
        if s == 0:
            return 0
        before = self.ends[BACKWARD][s - 1]
        return before[j] + self.flow.into_backward[s - 1] if len(before) > j else NEVER

    def forward_arrival(self, s: int, j: int) -> int:
        if s == self.flow.stages - 1:
            return self.ends[BACKWARD][s][j]
        before = self.ends[FORWARD][s + 1]
        return before[j] + self.flow.into_forward[s + 1] if len(before) > j else NEVER
