"""Decoding: token for token what ``generate()`` gives, on 1, 2 (tensor) and 2 (pipeline) workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superscaler import models
from superscaler.decoding import compile_decoder
from superscaler.errors import PlanError, UsageError
from superscaler.ir.check import check
from superscaler.ir.cluster import Cluster
from superscaler.ir.plan import Plan
from superscaler.plans.decoding import decoding
from superscaler.runtime.job import Job
from superscaler.runtime.launch import launch
from superscaler.runtime.serving.generate import generate
from tests.cases import slow

transformers: Any = pytest.importorskip("transformers")

PROMPT = [5, 9, 1, 33, 7, 2, 8, 50, 3, 11, 6]
NEW = 12
GROUPED = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def gpt2() -> nn.Module:
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, **tokens)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt": lambda: models.build("gpt", "tiny")[0],
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "gpt2": gpt2,
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED)),
}


def spread(model: nn.Module) -> nn.Module:
    """Weights (biases too) that make every token another one, in float64: no two logits are close."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name or "ln_" in name), std=0.3)
    return model.double().eval()


@torch.no_grad()
def expected(model: nn.Module, prompt: list[int], new: int) -> list[int]:
    if hasattr(model, "generate"):
        ids = model.generate(
            torch.tensor([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )  # type: ignore[operator]
        return ids[0, len(prompt) :].tolist()
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))  # type: ignore[operator]
    return ids[len(prompt) :]


def decoder(model: nn.Module, tensor: int = 1, pipeline: int = 1, *, prompt: int = 8, tokens: int = 30) -> Plan:
    cluster = Cluster.local(tensor * pipeline)
    script = decoding(tensor, pipeline)
    return compile_decoder(model, cluster=cluster, prompt=prompt, tokens=tokens, plan=script, dtype="f64")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("tensor", "pipeline"), [slow(1, 1), (2, 1), slow(1, 2)])
def test_tokens_are_those_of_generate(name: str, tensor: int, pipeline: int) -> None:
    model = spread(MODELS[name]())
    want = expected(model, PROMPT, NEW)
    assert len(set(want)) > 2, "a test that repeats one token tests little"
    plan = decoder(model, tensor, pipeline)
    with launch(plan, model, backend="inline") as job:
        assert generate(job, PROMPT, NEW) == want  # two pieces of 8, the second padded
        assert generate(job, PROMPT[:3], 4) == expected(model, PROMPT[:3], 4)
        assert generate(job, PROMPT, NEW, end={want[2]}) == want[: want.index(want[2]) + 1]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[nn.Module, Job]]:
    model = spread(MODELS["llama"]())
    with launch(decoder(model, prompt=4, tokens=24), model, backend="inline") as job:
        yield model, job


# Not 0: a prompt with the padding token would have it masked by generate().
@given(st.lists(st.integers(1, 63), min_size=1, max_size=18), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_a_prompt_of_any_length_goes_through_one_bucket(
    running: tuple[nn.Module, Job], prompt: list[int], new: int
) -> None:
    model, job = running
    assert generate(job, prompt, new) == (expected(model, prompt, new) if new else [])


def bodies(job: Job) -> str:
    executions = [w.entries["decode"] for w in job._crew.workers]  # type: ignore[union-attr]
    return "\n".join(body.module.code for e in executions for body in e.context.used.values())


def test_caches_are_split_by_heads_written_in_place_and_mapped_as_they_fill() -> None:
    model = spread(MODELS["llama"]())
    plan = decoder(model, 2, prompt=4, tokens=60)
    caches = [s for s in plan.state if s.kind == "cache"]
    assert len(caches) == 4
    assert all("tensor" in dict(c.layout.states) for c in caches), "each worker has its heads' keys and values"
    with launch(plan, model, backend="inline") as job:
        assert "cache_append_(" in bodies(job)
        assert "cache_append(" not in bodies(job)
        before = job.memory()[0]
        assert before["caches"] == 0
        generate(job, PROMPT, 40)
        after = job.memory()[0]
        assert after["caches"] == 0, "given back when the sequence has ended"
        assert after["most_mapped"] > before["mapped"]


def test_a_pipeline_keeps_caches_and_parameters_where_their_layers_are() -> None:
    plan = decoder(spread(MODELS["gpt"]()), 1, 2)
    check(plan)
    where = {s.name: plan.space.mesh(s.layout.mesh).devices for s in plan.state}
    assert where["blocks.0.attention/attention.keys"] == where["blocks.0.attention.key.weight"] == (0,)
    assert where["blocks.1.attention/attention.keys"] == where["blocks.1.attention.key.weight"] == (1,)
    for entry in plan.entries.values():
        sent = {route.tensor for route in entry.routes}
        assert not sent & set(where), "state stays where it is"


def test_a_plan_of_a_file_decodes(tmp_path: Any) -> None:
    model = spread(MODELS["gpt"]())
    decoder(model).save(tmp_path / "p.json")
    with launch(Plan.load(tmp_path / "p.json"), model, backend="inline") as job:
        assert generate(job, PROMPT, 4) == expected(model, PROMPT, 4)


def windowed(window: int) -> nn.Module:
    config = transformers.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=window, max_window_layers=1)
    return spread(transformers.Qwen2ForCausalLM(config))


@pytest.mark.parametrize("window", [4, 16, 29])
def test_a_window_that_the_sequence_outgrows_is_refused_wherever_it_begins(window: int) -> None:
    with pytest.raises(PlanError, match=r"has a mask|something else over 30 tokens than over 8"):
        decoder(windowed(window))


def test_a_window_that_the_sequence_fits_into_is_none() -> None:
    model = windowed(31)
    with launch(decoder(model), model, backend="inline") as job:
        assert generate(job, PROMPT, 19) == expected(model, PROMPT, 19)


def test_positions_that_are_stretched_for_long_sequences_are_refused() -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = transformers.Phi3Config(
        **GROUPED, original_max_position_embeddings=16, rope_scaling=rope, pad_token_id=0, eos_token_id=0
    )
    with pytest.raises(PlanError, match=r"rotary_emb.*cannot be computed token by token"):
        decoder(spread(transformers.Phi3ForCausalLM(config)))


def test_what_does_not_fit_is_refused_by_name() -> None:
    model = spread(MODELS["gpt"]())
    with pytest.raises(UsageError, match="32 positions"):
        decoder(model, tokens=33)
    with pytest.raises(UsageError, match="at given positions"):
        decoder(nn.Linear(2, 2))
    with launch(decoder(model, tokens=20), model, backend="inline") as job:
        with pytest.raises(UsageError, match="more than the plan's 20"):
            generate(job, PROMPT, 10)
        with pytest.raises(UsageError, match="one token or more"):
            generate(job, [], 1)


@pytest.mark.slow
def test_two_ray_workers_decode() -> None:
    model = spread(MODELS["llama"]())
    with launch(decoder(model, 2), model) as job:
        assert generate(job, PROMPT, NEW) == expected(model, PROMPT, NEW)
