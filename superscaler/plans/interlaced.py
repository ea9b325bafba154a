"""Interlaced pipeline (SuperScaler, §5): a huge vocabulary split over all devices, woven into the stages' schedule."""

from superscaler.errors import PlanError
from superscaler.plans.megatron import tensor_parallel
from superscaler.plans.planner import Planner, PlanScript


def interlaced(stages: int = 2, tensor: int = 1, microbatches: int = 1) -> PlanScript:
    """Embedding and head on all ``stages`` × ``tensor`` devices, the layers between in ``stages`` stages."""

    def plan(p: Planner) -> None:
        embeddings = [op for op in p.of_family("gather") if "v" in p.dims(op) and p.depends_on_input(op)]
        heads = [op for op in p.of_family("matmul") if p.leads_to_loss(op)]
        if not embeddings or not heads:
            raise PlanError(
                "interlaced: the model has no embedding and head to interlace",
                f"vocabulary embeddings found: {len(embeddings)}, heads: {len(heads)}",
                hint="pipeline(...) or megatron(...)",
            )
        after = p.after(heads[-1])
        apart = {op.name for op in (*embeddings, heads[-1], *after)}
        middle = [op for op in p.whole.ops if op.name not in apart]
        p.axis("tensor", tensor)
        cut = p.cut(embeddings, *p.runs(middle, stages), [heads[-1], *after])
        everyone = range(stages * tensor)
        p.axis("all", stages * tensor)
        for stage, devices in zip(cut[1:-1], p.cluster.take(stages * tensor, stages), strict=True):
            p.assign(stage, devices, axes=("tensor",))
        for stage in (cut[0], cut[-1]):
            p.assign(stage, everyone, axes=("all",))
        for op in embeddings:
            p.prefer(op, "v", stages * tensor, axis="all")
        p.prefer(heads[-1], "o", stages * tensor, axis="all")
        if tensor > 1:
            tensor_parallel(p, tensor, sequence=False)
        p.microbatches(microbatches)

    return plan
