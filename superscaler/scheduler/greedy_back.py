"""Greedy schedules made from their end: the pipeline is filled backwards in time, so it drains well.

Backwards, a weight gradient comes before the backward of its stage, backwards travel from the first stage to the last
and forwards back; memory is taken by the weight gradient and given back by the forward. While a device waits it takes
weight gradients ahead of need: read forwards, these are what fills it while the last backwards trickle in.
"""

from __future__ import annotations

from heapq import heappop, heappush

from superscaler.scheduler.flow import BACKWARD, FORWARD, NEVER, WEIGHT, Flow, Starts
from superscaler.scheduler.greedy import Rooms, Tuning


def greedy_back(flow: Flow, tuned: Tuning, limit: int = NEVER) -> Starts:
    """The schedule that comes of ``tuned`` from the end; backwards precede forwards there. Nothing if that must become
    longer than ``limit``."""
    run = _GreedyBack(flow, tuned)
    if not run.play(limit):
        return []
    total = max(row[-1] for row in run.ends[FORWARD])
    return [[[total - end for end in reversed(row)] for row in kind] for kind in run.ends]


class _GreedyBack:
    """One run. Times count from the end; ``ends`` are ends in that sense, micro-batches from the last one."""

    def __init__(self, flow: Flow, tuned: Tuning) -> None:
        self.flow = flow
        self.aging, self.in_flight, self.patience = tuned.aging, tuned.in_flight, tuned.patience
        self.ends: Starts = [[[] for _ in range(flow.stages)] for _ in range(3)]
        self.rooms = Rooms(flow, tuned.early)
        forwards, backwards, weights = self.ends
        source = [0] * flow.microbatches  # there from the beginning, which is the end
        last = flow.stages - 1
        # Of each stage of a device: what it has done, what it reads, after which delay, and what is added to that.
        self.stages = [
            [
                (
                    s, forwards[s], backwards[s], weights[s],
                    forwards[s + 1] if s < last else backwards[s], flow.into_forward[s + 1] if s < last else 0,
                    tuned.forward[s],
                    backwards[s - 1] if s else source, flow.into_backward[s - 1] if s else 0, tuned.backward[s],
                )
                for s in mine
            ]
            for mine in flow.stages_of
        ]  # fmt: skip

    def play(self, limit: int) -> bool:
        """Whether it came to its end, not too late for ``limit``."""
        flow, ends, rooms, choose = self.flow, self.ends, self.rooms, self.choose
        duration, device, stages = flow.duration, flow.device, flow.stages
        # Of what a device has left, the start: a forward is the last of it, behind which earlier stages have theirs.
        latest = [limit - flow.microbatches * load - flow.head[d] for d, load in enumerate(flow.load)]
        free, idle = [0] * flow.devices, [False] * flow.devices
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
                return False
            took = duration[kind][s]
            latest[d] += took
            free[d] = end = start + took
            ends[kind][s].append(end)
            if kind == WEIGHT:
                rooms.take(d, s)
            elif kind == FORWARD:
                rooms.give_back(d)
            heappush(heap, (end, d))
            neighbour = s - 1 if kind == FORWARD else s + 1 if kind == BACKWARD else -1
            if 0 <= neighbour < stages and idle[other := device[neighbour]]:
                idle[other] = False
                heappush(heap, (max(now, free[other]), other))
        return True

    def choose(self, d: int, now: int) -> tuple[int, int, int]:
        """What device ``d`` takes at ``now``: kind (-1: nothing is known), stage, start."""
        kind, stage, start = -1, -1, NEVER
        best = float(NEVER)
        room, later, aging, microbatches = self.rooms.left(d), self.rooms.later, self.aging, self.flow.microbatches
        durations = self.flow.duration[WEIGHT]
        filler, lead = -1, NEVER
        # A later stage never takes memory for a micro-batch before the earlier ones of its device have: no dead end.
        allowed = microbatches
        for s, forwards, backwards, weights, returned, delay, first, made, delay_back, first_back in self.stages[d]:
            nf, nb, nw = len(forwards), len(backwards), len(weights)
            if nf < nb and nf < len(returned):
                at = returned[nf] + delay
                if at < now:
                    at = now
                key = at + first + nf * aging
                if key < best:
                    best, kind, stage, start = key, FORWARD, s, at
            fits = room > later[s] and nw < allowed
            allowed = nw
            if fits and nw - nb < lead:
                filler, lead = s, nw - nb
            if nb < microbatches and nb - nf < self.in_flight[s] and (nw > nb or fits) and nb < len(made):
                # Its weight gradient goes first, so as to end when the backward arrives.
                at = made[nb] + delay_back - (0 if nw > nb else durations[s])
                if at < now:
                    at = now
                key = at + first_back + nb * aging
                if key < best:
                    best, kind, stage, start = key, BACKWARD if nw > nb else WEIGHT, s, at
        if filler >= 0 and (kind < 0 or start - now > self.patience * durations[filler]):
            return WEIGHT, filler, now
        return kind, stage, start
