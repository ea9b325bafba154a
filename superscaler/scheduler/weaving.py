"""Weaving in rounds: the order of stages that share devices, such as an embedding and a head split over all of them.

In a round every device takes part in one forward and one backward of each of its stages, of other micro-batches each;
so what needs all devices at once finds them all done at about the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from superscaler.scheduler.constructive import Orders, Step


def rounds(stages: Sequence[Collection[int]], microbatches: int) -> Orders:
    """One order of all tasks, for every device to keep to. ``stages``: their devices.

    A micro-batch moves on by one stage a round, and through stages that share a device within one; the last stage's
    backward follows in the round of its forward. Within a round forwards go first, earlier stages before later ones;
    then backwards, later stages before earlier ones.
    """
    reached = [0]
    for before, here in pairwise(stages):
        reached.append(reached[-1] + (not set(before) & set(here)))
    due: list[tuple[int, int, int, Step]] = []
    for j in range(microbatches):
        for stage, forward in enumerate(reached):
            backward = 2 * reached[-1] - forward
            due.append((j + forward, stage, 0, ("forward", stage, j)))
            for place, kind in enumerate(("recompute", "backward", "weight")):
                due.append((j + backward, 2 * len(stages) - stage, place, (kind, stage, j)))
    return [[step for *_, step in sorted(due)]]
