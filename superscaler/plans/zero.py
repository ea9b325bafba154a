"""ZeRO: data parallelism with optimizer state, gradients and parameters in shards (Rajbhandari et al. 2020, §5)."""

from superscaler.errors import UsageError
from superscaler.plans.megatron import tensor_parallel
from superscaler.plans.planner import Planner, PlanScript


def zero(
    level: int = 1, data: int = 1, replicas: int = 1, tensor: int = 1, microbatches: int = 1, offload: bool = False
) -> PlanScript:
    """State in shards over ``data`` devices; level 2: gradients too; level 3: parameters too, gathered where read.

    ``replicas``: groups of ``data`` × ``tensor`` devices that each hold all shards and split the batch between them.
    ``offload``: the optimizer's state in host memory (ZeRO-Offload, Ren et al. 2021; its step stays on the device).
    """
    if level not in (1, 2, 3):
        raise UsageError(f"zero has levels 1, 2 and 3, not {level}", hint="level=1: only the optimizer's state")

    def plan(p: Planner) -> None:
        p.split_batch(replicas, axis="replica")
        p.split_batch(data, axis="data")
        p.axis("tensor", tensor)
        p.microbatches(microbatches)
        (devices,) = p.cluster.take(replicas * data * tensor, 1)
        p.assign(p.whole, devices, axes=("replica", "data", "tensor"))
        if tensor > 1:
            tensor_parallel(p, tensor, sequence=True)
        p.shard_state(p.parameters, axis="data", parameter=level == 3)
        if level > 1:
            p.reduce_early(p.parameters)
        if offload:
            p.offload_state(p.parameters)

    return plan
