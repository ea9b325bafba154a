"""Megatron: tensor parallelism inside layers, a pipeline of stages, data parallelism around both.

Shoeybi et al. 2019 (tensor), Narayanan et al. 2021 (pipeline), Korthikanti et al. 2022 (sequence).
"""

from superscaler.plans.placement import pipeline_stages, placement_for, stages_per_device
from superscaler.plans.planner import Planner, PlanScript


def megatron(
    data: int = 1,
    tensor: int = 1,
    pipeline: int = 1,
    microbatches: int = 1,
    sequence: bool = True,
    schedule: str = "1f1b",
    placement: str = "",
    chunks: int = 0,
) -> PlanScript:
    """``data`` × ``tensor`` devices in each of ``pipeline`` groups. ``sequence``: split the residual stream as well.

    ``placement`` of the stages on the groups: by default the one that ``schedule`` is for (``zb_v``: two stages per
    group, in a V); ``chunks``: stages per group if interleaved. See :func:`superscaler.plans.pipeline`.
    """
    where = placement_for(schedule, placement)
    stages_per_device(where, chunks)

    def plan(p: Planner) -> None:
        p.split_batch(data, axis="data")
        p.axis("tensor", tensor)
        groups = p.cluster.take(data * tensor * pipeline, pipeline)
        pipeline_stages(p, groups, microbatches, where, chunks=chunks, axes=("data", "tensor"))
        if tensor > 1:
            tensor_parallel(p, tensor, sequence)
        p.order(schedule)

    return plan


def tensor_parallel(p: Planner, ways: int, sequence: bool) -> None:
    """Whole heads per device (where there are fewer, another dim), then column-parallel linears; what follows a column
    becomes its row.

    The vocabulary is split too: embedding and head. Each wish counts only where those before it decided nothing, so a
    linear that reads what a column-parallel one wrote has been split along its contraction already.
    """
    for op in p.of_family("attention"):
        p.prefer(op, "h", ways, axis="tensor")
    for op in p.of_family("gather"):
        if "v" in p.dims(op) and p.depends_on_input(op):
            p.prefer(op, "v", ways, axis="tensor")
    for op in p.of_family("matmul"):
        if op.target == "aten.mm.default":
            p.prefer(op, "o", ways, axis="tensor")
    if sequence:
        for op in p.find():
            if len(p.shape(op)) == 3 and p.shape(op)[0] == p.batch:
                p.prefer_output(op, 1, ways, axis="tensor")
