"""Decoding: whole heads per device, and a pipeline of stages, cut alike for prompts and for single tokens."""

from __future__ import annotations

from collections.abc import Mapping

from superscaler.ir.graph import Op
from superscaler.plans.megatron import tensor_parallel
from superscaler.plans.planner import Planner, PlanScript


def decoding(tensor: int = 1, pipeline: int = 1) -> PlanScript:
    """``tensor`` devices per stage, ``pipeline`` stages. Caches are split as the heads are, and lie with their layers.

    The script remembers how it cut the first entry, so that all entries find parameters and caches in one place. A head
    that is tied to the embedding runs where that is: activations of a few tokens go there, and no weights.
    """
    stages: dict[str, int] = {}

    def plan(p: Planner) -> None:
        p.axis("tensor", tensor)
        if not stages:
            stages.update({op.name: stage.index for stage in p.stages(pipeline) for op in stage.ops})
        groups: list[list[Op]] = [[] for _ in range(pipeline)]
        for op, stage in zip(p.whole.ops, _placed(p, stages), strict=True):
            groups[stage].append(op)
        for stage, devices in zip(p.cut(*groups), p.cluster.take(tensor * pipeline, pipeline), strict=True):
            p.assign(stage, devices, axes=("tensor",))
        if tensor > 1:
            tensor_parallel(p, tensor, sequence=False)
        p.order("gpipe")

    return plan


def _placed(p: Planner, stages: Mapping[str, int]) -> list[int]:
    """The stage of each op: as said for its name (for the op before it, if it is new), or where its weights are."""
    found: list[int] = []
    home: dict[str, int] = {}  # tensors that are made of parameters alone -> the stage that has these
    stage = 0
    for op in p.whole.ops:
        stage = stages.get(op.name, stage)
        weights = [n for n in op.inputs if p.graph.tensor[n].kind == "parameter" or n in home]
        for name in weights:
            home.setdefault(name, stage)
        place = min((home[n] for n in weights), default=stage)
        if op.inputs and len(weights) == len(op.inputs):
            home.update(dict.fromkeys(op.outputs, place))
        found.append(place)
    return found
