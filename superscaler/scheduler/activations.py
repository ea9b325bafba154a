"""How many activations a pipeline needs, exactly, and what to change where a device cannot hold them.

Every forward of a micro-batch comes before its first backward, and a weight gradient after it gives back what the
forward took: so a device holds an activation of each of its stages at once. It needs no more, for micro-batches may go
one after another. A stage that is made again, unless it is the device's last, is held after the others have left.
"""

from __future__ import annotations

from superscaler.errors import InfeasiblePlan
from superscaler.scheduler.explain import more_memory
from superscaler.scheduler.pipeline import PipelineProblem


def check_activations(problem: PipelineProblem) -> None:
    """Raise :class:`InfeasiblePlan`, with the least that helps, if a device cannot even hold one micro-batch."""
    shape = problem.shape
    least = [len(shape.stages_of(device)) for device in range(shape.devices)]
    limits = enumerate(zip(problem.limits, least, strict=True))
    short = {device: need for device, (limit, need) in limits if limit is not None and limit < need}
    if short:
        raise InfeasiblePlan(
            "no schedule fits the memory of the devices",
            f"limits in conflict: {', '.join(f'memory[{device}]={problem.limits[device]}' for device in short)}",
            hint=", or ".join([more_memory(short, shape.devices, "activations"), *_recomputed(problem, short)]),
        )


def _recomputed(problem: PipelineProblem, short: dict[int, int]) -> list[str]:
    """The cheapest stage to be made again if that is enough: where one device is short, by one activation."""
    (device, need), *others = short.items()
    if others or problem.limits[device] != need - 1:
        return []
    cost = problem.durations("forward")
    return [f"recompute stage {min(problem.shape.stages_of(device)[:-1], key=lambda stage: cost[stage])}"]
