"""Ordering: in which order ops are emitted, and so run inside their task, where a plan has something to say of it."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.task import TaskGraph

Groups = Sequence[tuple[frozenset[str], frozenset[str]]]


def ordered(graph: Graph, before: Groups) -> tuple[Op, ...]:
    """The graph's ops, each after what it reads and after what is to run before it; else in their own order.

    ``before``: ops (by name) all of which run before all of others. Raises :class:`PlanError` printing the cycle if
    that contradicts itself or what the ops read.
    """
    if not before:
        return graph.ops
    after, waiting = _edges(graph, before)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    heapify(ready)
    found: list[Op] = []
    while ready:
        node = heappop(ready)
        if node < len(graph.ops):
            found.append(graph.ops[node])
        for follower in after[node]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heappush(ready, follower)
    if len(found) < len(graph.ops):
        raise _cycle(graph, after, waiting)
    return tuple(found)


def check_shared(tasks: TaskGraph) -> None:
    """Ops that are to run one before the other share a device, which alone can keep the order, or read each other.

    Raises :class:`PlanError` for others.
    """
    for first, then in tasks.sequence:
        here, there = (set[int]().union(*(_devices(tasks, op) for op in ops)) for ops in (first, then))
        if not here & there and not then & _following(tasks.graph, first):
            raise PlanError(
                f"{min(first)} cannot be kept before {min(then)}: they share no device",
                f"they run on {sorted(here)} and {sorted(there)}, and the second reads nothing of the first",
                hint="the same devices for both",
            )


def _edges(graph: Graph, before: Groups) -> tuple[list[list[int]], list[int]]:
    """Who comes after whom: ops by number, then a node between each two groups."""
    number = {op.name: i for i, op in enumerate(graph.ops)}
    pairs = [
        (number[graph.producer[name].name], i)
        for i, op in enumerate(graph.ops)
        for name in dict.fromkeys(op.inputs)
        if name in graph.producer
    ]
    for k, (first, then) in enumerate(before, start=len(graph.ops)):
        pairs += [(number[name], k) for name in first] + [(k, number[name]) for name in then]
    after: list[list[int]] = [[] for _ in range(len(graph.ops) + len(before))]
    waiting = [0] * len(after)
    for a, b in pairs:
        after[a].append(b)
        waiting[b] += 1
    return after, waiting


def _cycle(graph: Graph, after: list[list[int]], waiting: list[int]) -> PlanError:
    """One cycle among what was never ready, in words."""
    earlier = {b: a for a, followers in enumerate(after) for b in followers if waiting[a] and waiting[b]}
    node, seen = next(iter(earlier)), list[int]()
    while node not in seen:
        seen.append(node)
        node = earlier[node]
    cycle = seen[seen.index(node) :][::-1]
    begin = next(i for i, n in enumerate(cycle) if n < len(graph.ops))
    cycle = [*cycle[begin:], *cycle[: begin + 1]]
    lines = [
        f"{graph.ops[a].name} {'is read by' if b < len(graph.ops) else 'is to run before'}"
        for a, b in pairwise(cycle)
        if a < len(graph.ops)
    ]
    return PlanError(
        "the orders asked for contradict each other, or what the ops read: a cycle",
        *lines,
        f"{graph.ops[cycle[0]].name} again",
        hint="drop one of these orders",
    )


def _devices(tasks: TaskGraph, op: str) -> set[int]:
    return {d for stage in tasks.placed[op].stages for d in tasks.space.mesh(tasks.stages[stage]).devices}


def _following(graph: Graph, names: frozenset[str]) -> set[str]:
    """The ops that depend on some."""
    found = set(names)
    for op in graph.ops:
        if any(n in graph.producer and graph.producer[n].name in found for n in op.inputs):
            found.add(op.name)
    return found
