"""Lower bounds of a pipeline where memory is the bottleneck: activations live for so long, so many at a time.

An activation of stage s lives at least from its forward to its backward, if nothing waits, and through its weight
gradient. On a device of several stages a micro-batch holds one activation after the other and then gives them back;
since activations are whole, only so many micro-batches can hold ``k`` of them at the same time.
"""

from __future__ import annotations

from superscaler.scheduler.bounds import Bound
from superscaler.scheduler.flow import BACKWARD, WEIGHT, Flow
from superscaler.scheduler.heads import Heads


def memory_bound(flow: Flow, head: Heads) -> Bound:
    """The best of these bounds over the devices."""
    best = Bound(0, "", "")
    for d, mine in enumerate(flow.stages_of):
        where = f"memory of device {d}"
        found = [Bound(_all_lives(flow, head, d), "activations times their shortest lives", where)]
        for k in range(1, len(mine) + 1):
            value = _turns(flow, head, d, k)
            found.append(Bound(value, f"micro-batches that hold {k} activations take turns", where))
        best = max((best, *found), key=lambda bound: bound.value)
    return best


def _all_lives(flow: Flow, head: Heads, d: int) -> int:
    """``capacity * T >= microbatches * shortest lives``, between the first forward and what follows the last backward.

    Or, without what follows, lives that are longer because two weight gradients cannot run at once.
    """
    mine, weight = flow.stages_of[d], flow.duration[WEIGHT]
    lives = sum(flow.round_trip[s] + flow.duration[BACKWARD][s] + weight[s] for s in mine)
    first = min(head.forward[s] for s in mine)
    rest = min(head.backward_from_end[s] - weight[s] for s in mine)
    apart = lives + (_conflict(flow, *mine) if len(mine) == 2 else 0)
    return first + max(
        rest - (-flow.microbatches * lives // flow.capacity[d]), -(-flow.microbatches * apart // flow.capacity[d])
    )


def _conflict(flow: Flow, early: int, late: int) -> int:
    """By how much the lives of a micro-batch's two activations on one device are longer than either alone could be.

    Once the backward of ``late`` has ended, its weight gradient may delay the backward of ``early`` when that arrives,
    or waits until the weight gradient of ``early`` has ended.
    """
    b, w = flow.duration[BACKWARD], flow.duration[WEIGHT]
    until = _way_back(flow, late, early) - b[early]
    return min(max(0, w[late] - until), until + b[early] + w[early])


def _turns(flow: Flow, head: Heads, d: int, k: int) -> int:
    """At most ``capacity // k`` micro-batches hold ``k`` activations at once: each from its forward of stage number k.

    It holds them until one of the weight gradients has ended, which the backward of that stage precedes. Forwards of a
    stage come one after another, and micro-batches first in first out.
    """
    mine, last = flow.stages_of[d][:k], flow.stages_of[d][k - 1]
    forward, backward, _ = (kind[last] for kind in flow.duration)
    back = min(_way_back(flow, last, s) + flow.duration[WEIGHT][s] for s in mine)
    held = flow.round_trip[last] + backward + back
    rest = head.backward_from_end[last] - back
    count, at_once = flow.microbatches, flow.capacity[d] // k
    if not at_once:
        return 0
    step = max(held, _alone(flow, head, d, held - back)) if flow.capacity[d] == len(flow.stages_of[d]) == k else held
    whole = count // at_once * at_once  # up to here micro-batches come in full turns
    ends = {count - 1, max(0, whole - 1)}
    starts = max((j % at_once + count - 1 - j) * forward + j // at_once * step for j in ends)
    return head.forward[last] + starts + held + rest


def _alone(flow: Flow, head: Heads, d: int, turn: int) -> int:
    """The ticks from a forward of the last stage of device d to the next one, where memory holds one micro-batch.

    ``turn`` ticks after the former ends its backward. Only then do gradients of the device's other stages, and all its
    weight gradients, the first of which lets the next micro-batch in; all that is done when its last forward starts.
    """
    mine, (f, b, w) = flow.stages_of[d], flow.duration
    work = sum(f[s] + b[s] + w[s] for s in mine) - f[mine[-1]] - b[mine[-1]]
    back = min(_way_back(flow, mine[-1], s) + w[s] for s in mine)
    return turn + max(work, back + head.forward[mine[-1]] - head.forward[mine[0]])


def _way_back(flow: Flow, late: int, early: int) -> int:
    """The ticks from the end of the backward of stage ``late`` to that of an earlier stage at least."""
    return sum(flow.duration[BACKWARD][s] + flow.into_backward[s] for s in range(early, late))
