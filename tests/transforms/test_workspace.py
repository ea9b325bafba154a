"""The workspace that a plan states is what its tasks allocate beside state and arena."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import superscaler as ss
from superscaler.ir.check.capacity import state_bytes
from superscaler.models import build
from superscaler.runtime.comm import Comm
from superscaler.runtime.measuring import peak
from superscaler.runtime.rehearsal import Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker

CPU = torch.device("cpu")
GPT = ("gpt", "tiny", {"layers": 2, "hidden": 128, "heads": 4, "vocab": 512, "context": 64}, (8, 64))
SWIN = ("swin", "tiny", {"hidden": 32}, (8,))
WINDOWS = ("swin", "tiny", {"hidden": 32, "image": 64, "window": 16}, (2,))
T5 = ("t5", "tiny", {"hidden": 64, "ffn": 256, "vocab": 512, "context": 32}, (8, 32))
ALPHAFOLD = ("alphafold2", "tiny", {}, (2,))
PLANS: list[tuple[Any, str, int, str]] = [
    (GPT, "data_parallel:ways=1", 1, "f32"),
    (GPT, "data_parallel:ways=2,microbatches=2", 2, "f32"),
    (GPT, "megatron:tensor=2,pipeline=2,microbatches=2", 4, "f32"),
    (GPT, "megatron:tensor=2,pipeline=2,microbatches=2", 4, "bf16"),
    (GPT, "recompute:ops=all+megatron:tensor=2,microbatches=2", 2, "f32"),
    (GPT, "zero:level=1,data=2", 2, "f32"),
    (GPT, "zero:level=3,data=2", 2, "f32"),
    (GPT, "co_shard:parts=4", 1, "f32"),
    (SWIN, "pipeline:stages=1", 1, "f32"),
    (WINDOWS, "co_shard:parts=2", 1, "f32"),
    (WINDOWS, "co_shard:parts=2,data=2", 2, "f32"),
    (T5, "pipeline:stages=2,microbatches=2", 2, "f32"),
    (T5, "interlaced:stages=2,microbatches=4", 2, "f32"),
    (ALPHAFOLD, "data_parallel:ways=2", 2, "f32"),
]


def workspace(plan: ss.Plan, worker: int) -> int:
    """What a worker allocates beside state and arena, its peers being away."""
    alone: Any = type("Alone", (), {"ordered": False})()
    comm: Comm = Rehearsal(alone)
    found = make_worker(plan, worker, comm, WorkerOptions("cpu"))
    try:
        with torch.no_grad():
            comm.run(found.entries.values())
            with peak(CPU) as highest:
                comm.run(found.entries.values())
    finally:
        found.close()
    return highest.bytes


@pytest.mark.parametrize(
    ("model", "script", "devices", "dtype"),
    [
        pytest.param(m, p, n, t, id=f"{m[0]}-{p}-{t}", marks=[pytest.mark.slow] if m is ALPHAFOLD else [])
        for m, p, n, t in PLANS
    ],
)
def test_a_stated_workspace_is_what_is_allocated(model: Any, script: str, devices: int, dtype: Any) -> None:
    name, preset, sizes, batch = model
    torch.manual_seed(0)
    module, example = build(name, preset, **{k: str(v) for k, v in sizes.items()})
    plan = ss.compile(
        module, example(*batch), cluster=ss.Cluster.local(devices), plan=script, optimizer=ss.AdamW(clip_norm=1.0),
        evaluate=False, dtype=dtype,
    )  # fmt: skip
    for program in plan.entries["train"].programs:
        stated = program.peak - program.arena - state_bytes(plan)[program.workers[0]]
        measured = workspace(plan, program.workers[0])
        # Numbers, counts and masks of rows are not counted; kernels for half precision have room of their own.
        assert stated == pytest.approx(measured, rel=0.1, abs=program.peak // 25)


OPTIMIZERS = {
    "adamw": ss.AdamW(),
    "adamw, clipping": ss.AdamW(clip_norm=1.0),
    "sgd": ss.SGD(lr=0.1),
    "sgd, decay": ss.SGD(lr=0.1, weight_decay=0.1),
    "sgd, clipping": ss.SGD(lr=0.1, clip_norm=1.0),
    "sgd, momentum": ss.SGD(lr=0.1, momentum=0.9),
    "sgd, nesterov": ss.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "sgd, all": ss.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, clip_norm=1.0),
}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_step_allocates_is_stated(optimizer: str, dtype: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU())
    plan = ss.compile(
        model, (torch.randn(1, 512),), cluster=ss.Cluster.local(1), plan="data_parallel:ways=1", dtype=dtype,
        optimizer=OPTIMIZERS[optimizer], loss=lambda out: out.sum(), evaluate=False,
    )  # fmt: skip
    (program,) = plan.entries["train"].programs
    stated = program.peak - program.arena - state_bytes(plan)[0]
    assert stated == pytest.approx(workspace(plan, 0), rel=0.1, abs=program.peak // 25)
