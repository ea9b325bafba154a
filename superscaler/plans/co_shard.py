"""Co-shard (SuperScaler, §5): attention and MLP split along heads and hidden into parts that stay on their device.

The parts run one after the other and each is recomputed, so only one part's activations are held; nothing is sent.
"""

from superscaler.errors import PlanError
from superscaler.plans.megatron import megatron
from superscaler.plans.planner import Planner, PlanScript


def co_shard(
    parts: int = 2, modules: str = "*", data: int = 1, tensor: int = 1, pipeline: int = 1, microbatches: int = 1
) -> PlanScript:
    """The layers of ``modules`` (a glob) in ``parts`` turns, inside the parallelism of ``megatron``."""

    def plan(p: Planner) -> None:
        megatron(data, tensor, pipeline, microbatches)(p)
        inner = p.inner(modules)
        axis = p.turns(inner, parts)
        heads = [op for op in inner if p.family(op) == "attention"]
        linears = [op for op in inner if op.target == "aten.mm.default"]
        if parts > 1 and not linears:
            raise PlanError(f"co_shard: no linear layer in modules {modules!r}", hint="modules='*'")
        for op in heads:
            p.prefer(op, "h", parts, axis=axis)
        for op in linears:
            p.prefer(op, "o", parts, axis=axis)

    return plan
