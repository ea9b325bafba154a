"""A steady state to a whole schedule: forwards and backwards in its order, weight gradients wherever there is room.

Filling and draining compress by themselves, since every task starts as early as its turn allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from superscaler.scheduler.flow import BACKWARD, FORWARD, NEVER, WEIGHT, Flow, Starts

Turn = tuple[int, int, int]
"""kind, stage, micro-batch: a forward or a backward"""


def unroll(flow: Flow, kernel: Sequence[Sequence[int]], period: int) -> Starts | None:
    """The schedule of ``flow`` in the order of ``kernel`` (starts by kind and stage), or None if memory stops it."""
    orders: list[list[Turn]] = []
    for mine in flow.stages_of:
        turns = [(k, s, j) for k in (FORWARD, BACKWARD) for s in mine for j in range(flow.microbatches)]
        orders.append(sorted(turns, key=lambda turn: (kernel[turn[0]][turn[1]] + period * turn[2], turn)))
    return in_order(flow, orders)


def in_order(flow: Flow, orders: Sequence[Sequence[Turn]]) -> Starts | None:
    """Forwards and backwards of each device in the given order, weight gradients when the next one is not ready."""
    run = _InOrder(flow, orders)
    run.play()
    if any(len(row) < flow.microbatches for kind in run.ends for row in kind):
        return None
    sizes = flow.duration
    return [[[end - sizes[k][s] for end in run.ends[k][s]] for s in range(flow.stages)] for k in range(3)]


class _InOrder:
    def __init__(self, flow: Flow, orders: Sequence[Sequence[Turn]]) -> None:
        self.flow, self.orders = flow, orders
        self.next = [0] * flow.devices
        self.live = [0] * flow.devices
        self.ends: Starts = [[[] for _ in range(flow.stages)] for _ in range(3)]

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
            self.live[d] += (kind == FORWARD) - (kind == WEIGHT)
            self.next[d] += kind != WEIGHT
            heappush(heap, (free[d], d))
            neighbour = s + 1 if kind == FORWARD else s - 1 if kind == BACKWARD else -1
            if 0 <= neighbour < flow.stages and idle[other := flow.device[neighbour]]:
                idle[other] = False
                heappush(heap, (max(now, free[other]), other))

    def choose(self, d: int, now: int) -> tuple[int, int, int]:
        """What device ``d`` does at ``now``: its next turn if ready, else its oldest weight gradient, else the wait."""
        turn, start = (-1, -1, -1), NEVER
        if self.next[d] < len(self.orders[d]):
            turn = self.orders[d][self.next[d]]
            start = max(now, self.arrival(turn, d))
        if start > now and (weight := self.oldest_weight(d)) >= 0:
            return WEIGHT, weight, now
        return (turn[0], turn[1], start) if start < NEVER else (-1, -1, NEVER)

    def arrival(self, turn: Turn, d: int) -> int:
        if turn[0] == FORWARD and self.live[d] >= self.flow.capacity[d]:
            return NEVER
        latest = 0
        for (k, q, j), delay in self.flow.predecessors(turn):
            if len(self.ends[k][q]) <= j:
                return NEVER
            latest = max(latest, self.ends[k][q][j] + delay)
        return latest

    def oldest_weight(self, d: int) -> int:
        backwards, weights = self.ends[BACKWARD], self.ends[WEIGHT]
        waiting = [s for s in self.flow.stages_of[d] if len(weights[s]) < len(backwards[s])]
        return min(waiting, key=lambda s: backwards[s][len(weights[s])], default=-1)
