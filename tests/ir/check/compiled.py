"""Plans of all kinds, compiled from a tiny GPT: what the check is to find no fault in, and faults are put into."""

from __future__ import annotations

from functools import lru_cache

from superscaler.ir.plan import Plan

# (plan, workers, clipping by the global norm)
KINDS: tuple[tuple[str, int, bool], ...] = (
    ("data_parallel:ways=1", 1, False),
    ("data_parallel:ways=2", 2, True),
    ("megatron:tensor=2", 2, True),
    ("megatron:data=2,tensor=2,sequence=false", 4, False),
    ("pipeline:stages=2,microbatches=4", 2, False),
    ("megatron:data=2,tensor=2,pipeline=2,microbatches=2", 8, True),
    ("recompute:ops=all+megatron:tensor=2,pipeline=2,microbatches=4", 4, True),
    ("zero:level=3,data=2,tensor=2,microbatches=2", 4, True),
    ("zero:level=2,data=2,microbatches=2,offload=true", 2, True),
    ("co_shard:parts=2,tensor=2,microbatches=2", 2, True),
    ("interlaced:stages=2,microbatches=4", 2, True),
    ("interlaced:stages=2,tensor=2,microbatches=2", 4, False),
)


@lru_cache(maxsize=32)
def compiled(kind: str, workers: int, clip: bool) -> Plan:
    """A plan of a tiny GPT with AdamW, or with SGD and momentum if it does not clip."""
    import torch

    import superscaler as ss
    from superscaler.models import build

    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    optimizer = ss.AdamW(clip_norm=1.0) if clip else ss.SGD(lr=0.1, momentum=0.9)
    return ss.compile(
        model, example(8), cluster=ss.Cluster.local(workers), plan=kind, optimizer=optimizer, evaluate=True
    )
