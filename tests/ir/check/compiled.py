"""Plans of all kinds, of a tiny GPT if nothing else is said: what the check is to find no fault in, and faults are put
into."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from superscaler.ir.plan import Plan

# (plan [of SUBJECT], workers, clipping by the global norm)
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
    ("three_f_one_b:stages=2,microbatches=4 of alphafold2", 2, True),
    ("dap:ways=2 of alphafold2", 2, False),
    ("megatron:tensor=2,pipeline=2,microbatches=2 of gpt with dropout", 4, True),
    ("megatron:tensor=2,pipeline=2,microbatches=2 of gpt in bf16", 4, True),
    ("data_parallel:ways=2 of resnet", 2, True),
    ("data_parallel:ways=3 of swin", 3, False),
    ("pipeline:stages=2,microbatches=2 of t5", 2, True),
    ("decoding:tensor=2 of gpt", 2, False),
    ("decoding:pipeline=2 of gpt", 2, False),
)


@lru_cache(maxsize=32)
def compiled(kind: str, workers: int, clip: bool) -> Plan:
    """A plan of a tiny model with AdamW, or with SGD and momentum if it does not clip."""
    import torch

    import superscaler as ss
    from superscaler.decoding import compile_decoder
    from superscaler.plans.decoding import decoding

    torch.manual_seed(0)
    script, _, subject = kind.partition(" of ")
    model, args, dtype = _subject(subject or "gpt")
    cluster = ss.Cluster.local(workers)
    if script.startswith("decoding"):
        options = dict(option.split("=") for option in script.partition(":")[2].split(","))
        plan = decoding(**{name: int(ways) for name, ways in options.items()})
        return compile_decoder(model, cluster=cluster, plan=plan, prompt=4, tokens=16)
    optimizer = ss.AdamW(clip_norm=1.0) if clip else ss.SGD(lr=0.1, momentum=0.9)
    return ss.compile(model, args, cluster=cluster, plan=script, optimizer=optimizer, dtype=dtype)


def _subject(name: str) -> tuple[Any, tuple[Any, ...], Any]:
    """A tiny model, its batch, and the dtype it is compiled in."""
    import torch
    from torch import nn

    from superscaler.models import build

    if name == "resnet":
        block = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        net = nn.Sequential(nn.Conv2d(3, 4, 3), *block, nn.Flatten(), nn.Linear(4 * 36, 5))
        return _Classifier(net), (torch.randn(6, 3, 8, 8), torch.arange(6) % 5), "f32"
    settings: dict[str, Any] = {"dropout": 0.1} if name.endswith("with dropout") else {}
    if name == "alphafold2":
        settings["cycles"] = 3
    model, example = build(name.partition(" ")[0], "tiny", **settings)
    batch = {"alphafold2": 4, "swin": 6}.get(name, 8)
    return model, example(batch), "bf16" if name.endswith("in bf16") else "f32"


def _Classifier(net: Any) -> Any:
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), labels)

    return Classifier()
