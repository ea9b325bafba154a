"""Plans that do not apply to a model, or to a cluster, are refused before anything runs: what, why, what to try."""

from __future__ import annotations

import inspect
from functools import lru_cache

import pytest
import torch

import superscaler as ss
from superscaler.errors import ClusterError, PlanError, SuperscalerError, UsageError
from superscaler.models import build
from superscaler.plans import PLANS, devices_of, parse
from tests.cases import slow
from tests.exact import Subject


def compiled(model: str, plan: str, devices: int, batch: int = 8, **options: object) -> ss.Plan:
    torch.manual_seed(0)
    network, example = build(model, "tiny")
    given = {"evaluate": False, **options}
    return ss.compile(network, example(batch, None), cluster=ss.Cluster.local(devices), plan=plan, **given)  # type: ignore[arg-type]


@lru_cache
def subject(model: str) -> Subject:
    torch.manual_seed(0)
    small = {"blocks": 1, "extra_blocks": 1, "cycles": 2} if model == "alphafold2" else {}
    network, example = build(model, "tiny", **small)
    return Subject(network, example(8, None))


COUNTS = [
    (name, option)
    for name, plan in PLANS.items()
    for option, parameter in inspect.signature(plan).parameters.items()
    if type(parameter.default) is int and option != "chunks"  # chunks=0: as many as the placement has
]


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize(("name", "option"), COUNTS)
def test_no_count_is_below_one(name: str, option: str, count: int) -> None:
    model = "alphafold2" if name in ("dap", "three_f_one_b") else "gpt"
    with pytest.raises(SuperscalerError, match=str(count)) as caught:
        subject(model).compile(f"{name}:{option}={count}", 4, ss.SGD(lr=0.1))
    assert "try: " in str(caught.value)


@pytest.mark.parametrize(("name", "option"), [pair for pair in COUNTS if pair[1] not in ("level", "small")])
def test_a_degree_is_a_whole_number(name: str, option: str) -> None:
    model = "alphafold2" if name in ("dap", "three_f_one_b") else "gpt"
    with pytest.raises(UsageError, match=r"whole number, not 2\.0") as caught:
        subject(model).compile(PLANS[name](**{option: 2.0}), 4, ss.SGD(lr=0.1))
    assert "try: " in str(caught.value)


def test_one_stage_is_no_3f1b() -> None:
    with pytest.raises(ss.errors.PlanError, match="stages=1") as caught:
        subject("alphafold2").compile("three_f_one_b:stages=1", 1, ss.SGD(lr=0.1))
    assert "try: stages=2" in str(caught.value)


@pytest.mark.parametrize("plan", [5, ss.Cluster.local(2), PLANS["megatron"], PLANS["co_shard"]])
def test_what_is_no_plan_is_refused(plan: object) -> None:
    """Also a plan's maker that nobody called, which would say nothing."""
    with pytest.raises(UsageError) as caught:
        compiled("gpt", plan, 2)  # type: ignore[arg-type]
    assert "try: " in str(caught.value)


def test_what_is_not_around_a_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="recompute goes around a plan"):
        ss.plans.recompute("zero:data=2")  # type: ignore[arg-type]


PLACED = [
    "data_parallel:ways=3", "megatron:data=2,tensor=3", "zero:level=3,data=2,replicas=2", "recompute+zero:data=3",
    "pipeline:stages=4", "pipeline:stages=4,schedule=zb_v,microbatches=4",
    "pipeline:stages=6,chunks=3,schedule=interleaved_1f1b,microbatches=2",
    "pipeline:stages=2,placement=bidirectional,microbatches=2", "megatron:pipeline=2,schedule=zb_v,microbatches=4",
    "co_shard:parts=2,data=2,pipeline=2", "interlaced:stages=2,tensor=2",
]  # fmt: skip


@pytest.mark.parametrize("plan", PLACED)
def test_a_plan_names_as_many_devices_as_it_takes(plan: str) -> None:
    planner = ss.Planner(subject("gpt").traced.graph, ss.Cluster.local(8))
    parse(plan)(planner)
    taken = {device for stage in planner.directives().stages for device in stage.devices}
    assert devices_of(plan) == len(taken)


@pytest.mark.parametrize("model", ["gpt", "swin", "t5", "alphafold2"])
def test_fewer_heads_than_parts(model: str) -> None:
    """Of attention that is one op, and of attention written out."""
    with pytest.raises(PlanError, match=r"attention of \d heads cannot be split 5 ways") as caught:
        subject(model).compile("co_shard:parts=5", 1, ss.SGD(lr=0.1))
    assert "superscaler/models/" in str(caught.value)


@pytest.mark.parametrize(("model", "plan", "devices", "error", "says"), [
    ("gpt", "three_f_one_b:stages=2", 2, PlanError, "nothing to recycle"),
    ("swin", "interlaced:stages=2", 2, PlanError, "no embedding and head"),
    ("gpt", "co_shard:parts=8", 1, PlanError, "attention of 4 heads cannot be split 8 ways"),
    ("gpt", "co_shard:parts=3,tensor=2", 2, PlanError, "attention of 4 heads cannot be split 6 ways"),
    ("gpt", "dap:ways=2", 2, PlanError, "no rows and columns"),
    slow("alphafold2", "dap:ways=8", 8, PlanError, "8 ways, but rows or columns of only 6"),
    ("gpt", "megatron:data=2,tensor=2,pipeline=2", 4, SuperscalerError, "8 devices"),
    ("gpt", "zero:level=1,data=16", 16, PlanError, "a batch of 8 cannot be split into 16 parts"),
    ("gpt", "zero:level=1,data=0", 2, SuperscalerError, "at least one"),
    ("gpt", "pipeline:stages=0", 2, SuperscalerError, "at least one"),
    ("gpt", "pipeline:stages=2,microbatches=0", 2, PlanError, "at least 1"),
    ("gpt", "pipeline:stage=2", 2, UsageError, "no option 'stage'"),
    ("gpt", "zero:level=1,data=2+megatron:tensor=2", 4, UsageError, "'zero' does not go around another plan"),
    ("gpt", "zero:level=1,pipeline=2", 2, UsageError, "no option 'pipeline'"),
    ("gpt", "zero:level", 2, UsageError, "level has no value"),
    ("gpt", "zero:data=2,data=4", 4, UsageError, "data is given twice"),
    ("gpt", "zero:data=3,tensor=2", 4, ClusterError, "the plan needs 6 devices, the cluster has 4"),
    ("gpt", "interlaced:stages=2,tensor=2", 3, ClusterError, "the plan needs 4 devices, the cluster has 3"),
    ("gpt", "zero:level=two", 2, UsageError, "not a whole number"),
    ("gpt", "recompute:plan=zero", 2, UsageError, "no option 'plan'"),
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
