"""Decoding: whole heads per device, and a pipeline of stages, cut alike for prompts and for single tokens."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.plans.megatron import tensor_parallel
from superscaler.plans.planner import Planner, PlanScript


def decoding(tensor: int = 1, pipeline: int = 1) -> PlanScript:
    """``tensor`` devices per stage, ``pipeline`` stages. Caches are split as the heads are, and lie with their layers.

    The script remembers how it cut the first entry, so that all entries find parameters and caches in one place.
    """
    stages: dict[str, int] = {}

    def plan(p: Planner) -> None:
        p.axis("tensor", tensor)
        runs = p.stages(pipeline) if not stages else p.cut(*_alike(p, stages, pipeline))
        if not stages:
            stages.update({op.name: stage.index for stage in runs for op in stage.ops})
        for stage, devices in zip(runs, p.cluster.take(tensor * pipeline, pipeline), strict=True):
            p.assign(stage, devices, axes=("tensor",))
        if tensor > 1:
            tensor_parallel(p, tensor, sequence=False)
        p.order("gpipe")

    return plan


def _alike(p: Planner, stages: dict[str, int], count: int) -> list[list[Op]]:
    """The ops by the stages of those of the same name; an op that is new lies where the one before it does."""
    groups: list[list[Op]] = [[] for _ in range(count)]
    stage = 0
    for op in p.whole.ops:
        stage = stages.get(op.name, stage)
        groups[stage].append(op)
    return groups
