"""What comes before and after a task of a pipeline at least: the longest chains of one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from superscaler.scheduler.flow import Flow


@dataclass(frozen=True, slots=True)
class Heads:
    """For each stage the least time before a forward and a backward; from the end, before a backward and a forward."""

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    backward_from_end: tuple[int, ...]
    forward_from_end: tuple[int, ...]


def heads(flow: Flow) -> Heads:
    """The longest chains, of one micro-batch, to the start of each task and from its end."""
    f, b, w = flow.duration
    last = flow.stages - 1
    forward, backward = [0] * (last + 1), [0] * (last + 1)
    for s in range(1, last + 1):
        forward[s] = forward[s - 1] + f[s - 1] + flow.into_forward[s]
    backward[last] = forward[last] + f[last]
    for s in range(last - 1, -1, -1):
        backward[s] = backward[s + 1] + b[s + 1] + flow.into_backward[s]
    from_end_b, from_end_f = [w[0]] * (last + 1), [0] * (last + 1)
    for s in range(1, last + 1):
        from_end_b[s] = max(w[s], from_end_b[s - 1] + b[s - 1] + flow.into_backward[s - 1])
    from_end_f[last] = from_end_b[last] + b[last]
    for s in range(last - 1, -1, -1):
        from_end_f[s] = max(from_end_b[s] + b[s], from_end_f[s + 1] + f[s + 1] + flow.into_forward[s + 1])
    return Heads(tuple(forward), tuple(backward), tuple(from_end_b), tuple(from_end_f))
