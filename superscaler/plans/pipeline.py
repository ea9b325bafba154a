"""A pipeline of stages, one or several on a device."""

from superscaler.errors import UsageError
from superscaler.plans.megatron import megatron
from superscaler.plans.placement import placement_for, stages_per_device
from superscaler.plans.planner import PlanScript


def pipeline(
    stages: int = 1, microbatches: int = 1, schedule: str = "1f1b", placement: str = "", chunks: int = 0
) -> PlanScript:
    """``stages`` consecutive parts of the model, fed with micro-batches in the order ``schedule``.

    ``placement``: ``linear`` (one stage per device), ``v`` (two), ``interleaved`` (``chunks``, by default two) or
    ``bidirectional``; by default the one that the schedule is for.
    """
    where = placement_for(schedule, placement)
    each = stages_per_device(where, chunks)
    if stages % each:
        raise UsageError(
            f"{stages} stages cannot lie {each} on a device (placement {where})", hint=f"a multiple of {each}"
        )
    return megatron(
        pipeline=stages // each, microbatches=microbatches, schedule=schedule, placement=where, chunks=chunks
    )
