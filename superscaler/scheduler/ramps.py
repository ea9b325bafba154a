"""Closed-form lower bounds of a pipeline: what its devices must idle while it fills and while it drains.

On device d nothing but forwards can run before its first backward can, at X, and memory lets at most ``capacity`` of
them start: in [0, X] it idles X less the work of those. Seen backwards in time, nothing but (input and weight)
gradients of at most ``capacity`` activations can run after the last forward. If the work of d alone is as long as both
windows, they are disjoint, and ``T >= microbatches * load + idle while filling + idle while draining``.

For a linear pipeline of equal stages with K = p and F = W this is ``3mF + (p-1)(B + 4c)``; for V with equal costs and
no communication the idle time is ``6p - 1 - 3K`` half-stage times while both terms are positive: both are attained.
"""

from __future__ import annotations

from collections.abc import Sequence

from superscaler.scheduler.bounds import Bound
from superscaler.scheduler.flow import BACKWARD, FORWARD, WEIGHT, Flow
from superscaler.scheduler.heads import Heads, heads
from superscaler.scheduler.lives import memory_bound


def ramp_bound(flow: Flow) -> Bound:
    """The best bound of this kind over the devices; it also covers heads, tails and one critical path."""
    best = Bound(_one_microbatch(flow, heads(flow)), "one micro-batch, out and back", "the critical path")
    return max((best, *device_bounds(flow), memory_bound(flow, heads(flow))), key=lambda bound: bound.value)


def device_bounds(flow: Flow) -> list[Bound]:
    """For each device its work and what it must idle at the ramps."""
    head = heads(flow)
    found: list[Bound] = []
    for d, mine in enumerate(flow.stages_of):
        up, until = filling(flow, head, d)
        down, since = draining(flow, head, d)
        work = flow.microbatches * flow.load[d]
        value = work + (up + down if work >= until + since else max(up, down))
        found.append(Bound(value, "work and idle ramps of one device", _binding(flow, head, d, mine, up, down)))
    return found


def filling(flow: Flow, head: Heads, d: int) -> tuple[int, int]:
    """Least idle ticks of device d before its first backward can start, and that time."""
    mine = flow.stages_of[d]
    first, until = min(head.forward[s] for s in mine), min(head.backward[s] for s in mine)
    forwards = [flow.duration[FORWARD][s] for s in mine]
    enough = until // max(1, min(forwards)) + 1  # forwards that fill all of that time anyhow
    work = _most_forwards(forwards, min(flow.capacity[d], enough + len(mine)), flow.microbatches)
    return until - min(until - first, work), until


def draining(flow: Flow, head: Heads, d: int) -> tuple[int, int]:
    """Least idle ticks of device d after its last forward must have ended, and that time, counted from the end."""
    mine = flow.stages_of[d]
    since = min(head.forward_from_end[s] for s in mine)
    left = flow.capacity[d]
    work = 0
    for gradients in sorted((flow.duration[BACKWARD][s] + flow.duration[WEIGHT][s] for s in mine), reverse=True):
        count = min(left, flow.microbatches)
        work += count * gradients
        left -= count
    return since - min(since, work), since


def _most_forwards(durations: Sequence[int], capacity: int, microbatches: int) -> int:
    """The most work of ``capacity`` forwards, later stages never ahead of earlier ones: a knapsack of prefixes."""
    prefixes = [sum(durations[: count + 1]) for count in range(len(durations))]
    if capacity >= microbatches * len(durations):
        return microbatches * prefixes[-1]
    best = [0] * (capacity + 1)
    for room in range(1, capacity + 1):
        best[room] = max(best[room - n - 1] + value for n, value in enumerate(prefixes) if n < room)
    return min(best[capacity], microbatches * prefixes[-1])


def _one_microbatch(flow: Flow, head: Heads) -> int:
    f, b, w = flow.duration
    turn = head.backward[0] + b[0] + w[0]
    return max(turn, *(head.forward[s] + f[s] + head.forward_from_end[s] for s in range(flow.stages)))


def _binding(flow: Flow, head: Heads, d: int, mine: Sequence[int], up: int, down: int) -> str:
    limited = up > min(head.forward[s] for s in mine) or down > 0
    return f"compute of device {d}" + (f", kept waiting by memory[{d}] = {flow.capacity[d]}" if limited else "")
