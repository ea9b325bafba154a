"""A pipeline of stages, one device each."""

from superscaler.plans.megatron import megatron
from superscaler.plans.planner import PlanScript


def pipeline(stages: int = 1, microbatches: int = 1, schedule: str = "1f1b") -> PlanScript:
    """``stages`` consecutive parts of the model on a device each, fed with micro-batches in the order ``schedule``."""
    return megatron(pipeline=stages, microbatches=microbatches, schedule=schedule)
