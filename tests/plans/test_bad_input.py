"""Plans that do not apply to a model, or to a cluster, are refused before anything runs: what, why, what to try."""

from __future__ import annotations

import pytest
import torch

import superscaler as ss
from superscaler.errors import PlanError, SuperscalerError, UsageError
from superscaler.models import build


def compiled(model: str, plan: str, devices: int, batch: int = 8, **options: object) -> ss.Plan:
    torch.manual_seed(0)
    network, example = build(model, "tiny")
    given = {"evaluate": False, **options}
    return ss.compile(network, example(batch, None), cluster=ss.Cluster.local(devices), plan=plan, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "plan", "devices", "error", "says"), [
    ("gpt", "three_f_one_b:stages=2", 2, PlanError, "nothing to recycle"),
    ("swin", "interlaced:stages=2", 2, PlanError, "no embedding and head"),
    ("gpt", "co_shard:parts=8", 1, PlanError, "attention of 4 heads cannot be split 8 ways"),
    ("gpt", "co_shard:parts=3,tensor=2", 2, PlanError, "attention of 4 heads cannot be split 6 ways"),
    ("gpt", "dap:ways=2", 2, PlanError, "no rows and columns"),
    ("alphafold2", "dap:ways=8", 8, PlanError, "8 ways, but rows or columns of only 6"),
    ("gpt", "megatron:data=2,tensor=2,pipeline=2", 4, SuperscalerError, "8 devices"),
    ("gpt", "zero:level=1,data=16", 16, PlanError, "a batch of 8 cannot be split into 16 parts"),
    ("gpt", "zero:level=1,data=0", 2, SuperscalerError, "at least one"),
    ("gpt", "pipeline:stages=0", 2, SuperscalerError, "at least one"),
    ("gpt", "pipeline:stages=2,microbatches=0", 2, PlanError, "at least 1"),
    ("gpt", "pipeline:stage=2", 2, UsageError, "no option 'stage'"),
    ("gpt", "zero:level=1,data=2+megatron:tensor=2", 4, UsageError, "'zero' does not go around another plan"),
    ("gpt", "zero:level=1,pipeline=2", 2, UsageError, "no option 'pipeline'"),
    ("gpt", "zero:level=two", 2, UsageError, "not a whole number"),
])  # fmt: skip
def test_what_does_not_apply_is_refused(model: str, plan: str, devices: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        compiled(model, plan, devices)
    assert "try: " in str(caught.value)


def test_gradients_in_shards_need_no_optimizer() -> None:
    assert compiled("gpt", "zero:level=2,data=2", 2).workers == 2


def test_idle_devices_are_stated() -> None:
    assert "cluster local of 4, 2 idle" in str(compiled("gpt", "zero:level=1,data=2", 4))
    assert "idle" not in str(compiled("gpt", "zero:level=1,data=2", 2))
