"""Every plan computes what the model computes: loss, gradients and three optimizer steps, against plain torch.

A plan that passes here has also passed the static check, and ran on as many workers as it names, in one process.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import superscaler as ss
from superscaler.models import build
from tests.cases import slow
from tests.exact import assert_exact
from tests.families import ignore_some

CLIPPED = ss.AdamW(lr=1e-2, clip_norm=1.0)
PLANS = [
    ("data_parallel:ways=1", 1),
    ("data_parallel:ways=3", 3),
    ("data_parallel:microbatches=3", 1),
    ("data_parallel:ways=2,microbatches=2", 2),
    ("pipeline:stages=2,microbatches=4", 2),
    ("pipeline:stages=2,microbatches=4,schedule=gpipe", 2),
    ("pipeline:stages=2,microbatches=4,schedule=solve", 2),
    ("megatron:tensor=2", 2),
    ("megatron:tensor=2,sequence=false", 2),
    ("megatron:tensor=4", 4),
    ("megatron:tensor=2,pipeline=2,microbatches=4", 4),
    ("megatron:data=2,tensor=2,pipeline=2,microbatches=2", 8),
    ("recompute:ops=all+data_parallel:ways=2,microbatches=2", 2),
    ("recompute:ops=all+megatron:tensor=2,pipeline=2,microbatches=2", 4),
]
SOME = PLANS[:1] + PLANS[4:5] + PLANS[7:8] + PLANS[10:12] + PLANS[-1:]


def gpt(batch: int = 4, **sizes: int) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny", **sizes)
    ids, labels = example(batch, None)
    return model, (ids, ignore_some(labels))


@pytest.mark.parametrize(("plan", "devices"), PLANS)
def test_gpt(plan: str, devices: int) -> None:
    model, args = gpt()
    assert_exact(model, args, plan, devices, optimizer=CLIPPED, evaluate=True)


@pytest.mark.parametrize("optimizer", [
    ss.SGD(lr=0.1),
    ss.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
    ss.SGD(lr=0.1, momentum=0.9, nesterov=True, clip_norm=0.5),
    ss.AdamW(lr=1e-2),
])  # fmt: skip
def test_optimizers(optimizer: ss.SGD | ss.AdamW) -> None:
    model, args = gpt()
    assert_exact(model, args, "megatron:tensor=2,pipeline=2,microbatches=2", 4, optimizer=optimizer)


def hf_model(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(0, 61, (4, 13))
    return model, {"input_ids": ids, "labels": ignore_some(ids)}


@pytest.mark.parametrize("name", [slow("gpt2"), "llama"])
@pytest.mark.parametrize(("plan", "devices"), SOME)
def test_hugging_face(name: str, plan: str, devices: int) -> None:
    model, kwargs = hf_model(name)
    assert_exact(model, (), plan, devices, optimizer=CLIPPED, kwargs=kwargs)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[dict[str, int], int, str, int]:
    """A GPT of odd sizes, a batch, and a plan on at most 8 workers that fits it."""
    heads = draw(st.integers(1, 5))
    layers = draw(st.integers(1, 3))
    sizes = {
        "layers": layers,
        "heads": heads,
        "hidden": heads * draw(st.integers(1, 6)),
        "vocab": draw(st.integers(8, 40)),
        "context": draw(st.sampled_from([5, 7, 8, 12])),
    }
    batch = draw(st.integers(1, 7))
    data = draw(st.integers(1, min(3, batch)))
    micro = draw(st.integers(1, max(1, batch // data)))
    pipeline = draw(st.integers(1, min(2, layers)))
    tensor = draw(st.integers(1, min(4, 8 // (data * pipeline))))
    schedule = draw(st.sampled_from(["gpipe", "1f1b", "solve"]))
    plan = f"megatron:data={data},tensor={tensor},pipeline={pipeline},microbatches={micro},schedule={schedule}"
    plan += ",sequence=" + draw(st.sampled_from(["true", "false"]))
    if draw(st.booleans()):
        plan = "recompute:ops=all+" + plan
    return sizes, batch, plan, data * tensor * pipeline


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn())
def test_any_size_and_plan(case: tuple[dict[str, int], int, str, int]) -> None:
    sizes, batch, plan, devices = case
    model, args = gpt(batch, **sizes)
    assert_exact(model, args, plan, devices, optimizer=CLIPPED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn())
def test_any_size_and_plan_at_length(case: tuple[dict[str, int], int, str, int]) -> None:
    sizes, batch, plan, devices = case
    model, args = gpt(batch, **sizes)
    assert_exact(model, args, plan, devices, optimizer=CLIPPED, evaluate=True)


def column_then_row(p: ss.Planner) -> None:
    """A plan that a user could have written: each MLP split by hand, everything else left to propagation."""
    p.microbatches(2)
    for stage, devices in zip(p.stages(2), p.cluster.groups(2), strict=True):
        for op in stage.find("*mlp.up*", op="linear"):
            p.assign(p.split(op, dim="o", ways=2), devices)
        for op in stage.find("*mlp.down*", op="linear"):
            p.assign(p.split(op, dim="h", ways=2), devices)
    p.order("1f1b")


def every_op_otherwise(p: ss.Planner) -> None:
    """Ops next to each other split along other dims: resharding everywhere, still exact."""
    for i, op in enumerate(p.find()):
        dims = [d for d in p.dims(op) if p.size(op, d) >= 4]
        if dims:
            parts = p.split(op, dims[i % len(dims)], ways=2)
            dims = [d for d in p.dims(op) if p.size(op, d) >= 8]
            p.assign(
                p.split(parts, dims[(i + 1) % len(dims)], ways=2) if dims else p.split(parts, dims_of(p, op), 2),
                range(4),
            )


def dims_of(p: ss.Planner, op: object) -> str:
    return next(d for d in p.dims(op) if p.size(op, d) >= 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("script", [column_then_row, every_op_otherwise])
def test_scripts(script: object) -> None:
    model, args = gpt()
    assert_exact(model, args, script, 4, optimizer=CLIPPED)
