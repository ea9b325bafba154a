"""Every named schedule, and the solved ones, run exactly: stages one or several on a device, alone and in products."""

from __future__ import annotations

import pytest

import superscaler as ss
from superscaler.errors import SuperscalerError
from superscaler.scheduler.constructive import Orders, Shape, named
from tests.cases import slow
from tests.exact import assert_exact
from tests.test_exactness import CLIPPED, gpt, hf_model

NAMED = [
    slow("pipeline:stages=4,microbatches=4,schedule=gpipe", 4),
    ("pipeline:stages=4,microbatches=4,schedule=gpipe,placement=v", 2),
    slow("pipeline:stages=4,microbatches=4,schedule=gpipe,placement=interleaved", 2),
    slow("pipeline:stages=4,microbatches=8,schedule=1f1b", 4),
    ("pipeline:stages=4,microbatches=8,schedule=1f1b,placement=v", 2),
    slow("pipeline:stages=4,microbatches=4,schedule=interleaved_1f1b", 2),
    ("pipeline:stages=6,microbatches=4,schedule=interleaved_1f1b,chunks=3", 2),
    slow("pipeline:stages=2,microbatches=3,schedule=interleaved_1f1b", 1),
    ("pipeline:stages=4,microbatches=8,schedule=zb_h1", 4),
    slow("pipeline:stages=4,microbatches=4,schedule=zb_v", 2),
    ("pipeline:stages=8,microbatches=8,schedule=v_half", 4),
    slow("pipeline:stages=8,microbatches=8,schedule=v_min", 4),
    ("pipeline:stages=8,microbatches=8,schedule=dualpipe_v", 4),
    ("pipeline:stages=4,microbatches=8,schedule=chimera", 4),
    ("pipeline:stages=4,microbatches=4,schedule=solve", 4),
    ("pipeline:stages=4,microbatches=4,schedule=solve,placement=v", 2),
    slow("pipeline:stages=4,microbatches=4,schedule=solve,placement=interleaved", 2),
    ("pipeline:stages=4,microbatches=8,schedule=solve,placement=bidirectional", 4),
]
PRODUCTS = [
    ("megatron:tensor=2,pipeline=2,microbatches=4,schedule=zb_v", 4),
    slow("megatron:data=2,pipeline=2,microbatches=4,schedule=dualpipe_v", 4),
    slow("megatron:data=2,tensor=2,pipeline=2,microbatches=2,schedule=interleaved_1f1b", 8),
    ("megatron:tensor=2,pipeline=2,microbatches=4,schedule=chimera", 4),
    slow("megatron:data=2,pipeline=2,microbatches=4,schedule=chimera", 4),
    slow("megatron:tensor=2,pipeline=2,microbatches=4,schedule=solve,placement=v", 4),
    ("recompute:ops=all+megatron:tensor=2,pipeline=2,microbatches=4,schedule=zb_v", 4),
]


@pytest.mark.parametrize(("plan", "devices"), NAMED + PRODUCTS)
def test_gpt(plan: str, devices: int) -> None:
    stages = int(plan.partition("stages=")[2].partition(",")[0] or 4)
    model, args = gpt(8, layers=stages, hidden=16, heads=2, vocab=37)
    found = assert_exact(model, args, plan, devices, optimizer=CLIPPED)
    assert found.entries["train"].certificate.gap >= 0
    assert found.workers == devices


@pytest.mark.parametrize("name", [slow("gpt2"), "llama"])
@pytest.mark.parametrize("plan", [
    "megatron:tensor=2,pipeline=2,microbatches=4,schedule=zb_v",
    "megatron:tensor=2,pipeline=2,microbatches=4,schedule=solve,placement=v",
    "megatron:tensor=2,pipeline=2,microbatches=4,schedule=chimera",
])  # fmt: skip
def test_hugging_face(name: str, plan: str) -> None:
    model, kwargs = hf_model(name)
    assert_exact(model, (), plan, 4, optimizer=CLIPPED, kwargs=kwargs)


def test_a_schedule_of_ones_own_runs() -> None:
    @named("turn_by_turn", placements=("v",))
    def turn_by_turn(shape: Shape) -> Orders:
        """One micro-batch after another, weight gradients at the end."""
        steps: Orders = []
        for d in range(shape.devices):
            down, up = shape.stages_of(d)
            each = [("forward", down), ("forward", up), ("backward", up), ("backward", down)]
            first = [(kind, s, j) for j in range(shape.microbatches) for kind, s in each]
            steps.append(first + [("weight", s, j) for j in range(shape.microbatches) for s in (down, up)])
        return steps

    model, args = gpt(4, layers=4)
    plan = assert_exact(model, args, "pipeline:stages=4,microbatches=4,schedule=turn_by_turn", 2)
    blocks = [
        (plan.entries["train"].programs[0].blocks[item.block].kind) for item in plan.entries["train"].programs[0].order
    ]
    assert blocks.index("weight") > max(i for i, kind in enumerate(blocks) if kind == "backward")


@pytest.mark.parametrize(("plan", "says"), [
    ("pipeline:stages=4,microbatches=4,schedule=zb_v,placement=linear", "does not go with where the stages lie"),
    ("pipeline:stages=4,microbatches=4,schedule=zb_h1,placement=v", "does not go with where the stages lie"),
    ("pipeline:stages=3,microbatches=4,schedule=zb_v", "3 stages cannot lie 2 on a device"),
    ("pipeline:stages=4,microbatches=4,schedule=zbv", "did you mean 'zb_v'"),
    ("pipeline:stages=4,microbatches=4,placement=w", "no placement is called 'w'"),
    ("pipeline:stages=4,microbatches=4,schedule=zb_v,chunks=3", "2 stages on a device"),
    ("pipeline:stages=4,microbatches=3,schedule=chimera", "even numbers"),
    ("pipeline:stages=4,microbatches=3,schedule=interleaved_1f1b", "in groups of 2 devices"),
    ("pipeline:stages=8,microbatches=4,schedule=dualpipe_v", "needs 8 micro-batches"),
    ("pipeline:stages=0,microbatches=4", "one stage: no pipeline"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(plan: str, says: str) -> None:
    model, args = gpt(8, layers=8, hidden=16, heads=2, vocab=37)
    with pytest.raises(SuperscalerError, match=says):
        ss.compile(model, args, cluster=ss.Cluster.local(4), plan=plan, evaluate=False)
