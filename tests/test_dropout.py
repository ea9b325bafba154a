"""Dropout: any plan draws the numbers that one worker draws, and they are as random as they should be."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import superscaler as ss
from superscaler.models import build
from tests.exact import Subject, compare, run
from tests.families import language, transformers
from tests.random_plans import RandomPlan

ADAM = ss.AdamW(lr=1e-2, clip_norm=1.0)
ONE = "data_parallel:ways=1"
PLANS = [
    ("data_parallel:ways=3,microbatches=1", 3),
    ("data_parallel:ways=2,microbatches=2", 2),
    ("megatron:tensor=2,pipeline=2,microbatches=4", 4),
    ("recompute:ops=all+megatron:data=2,tensor=2,microbatches=2", 4),
    (RandomPlan(seed=3, data=2, one=2, two=2, microbatches=2, share=0.5, again=0.3), 8),
]


def bert() -> tuple[nn.Module, tuple[Any, ...], dict[str, Tensor]]:
    config = transformers().BertConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    return transformers().BertForMaskedLM(config), (), language(4, 7)


def t5() -> tuple[nn.Module, tuple[Any, ...], dict[str, Tensor]]:
    model, example = build(
        "t5", "tiny", vocab=48, hidden=16, heads=4, head_size=4, ffn=24, context=7, layers=1, dropout=0.2
    )
    return model, example(4, None), {}


@lru_cache(maxsize=2)
def subject(name: str) -> Subject:
    torch.manual_seed(0)
    model, args, kwargs = {"bert": bert, "t5": t5}[name]()
    return Subject(model, args, kwargs)


@pytest.mark.parametrize(("plan", "devices"), PLANS)
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_every_plan_draws_the_same(name: str, plan: Any, devices: int) -> None:
    found = subject(name)
    one = found.run(found.compile(ONE, 1, ADAM))
    assert one.losses[0] != pytest.approx(found.expected(ADAM).losses[0], rel=1e-6)  # other numbers than torch's own
    compare(found.run(found.compile(plan, devices, ADAM)), one, ADAM)


class Masks(nn.Module):
    """Its gradients are its masks: that of each weight is the sum over the batch of kept / (1 − p)."""

    def __init__(self, layers: int, width: int, p: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(layers))
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.dropout(x + w, self.p).sum() for w in self.weights]).sum()


WIDTH, P = 40_000, 0.3


def masks(plan: str = ONE, batch: int = 1, steps: int = 1, seed: int = 0) -> list[list[Tensor]]:
    """The masks of two layers, step by step."""
    model = Masks(2, WIDTH, P)
    x = torch.zeros(batch, WIDTH)
    compiled = ss.compile(model, (x,), cluster=ss.Cluster.local(2), plan=plan, seed=seed, evaluate=False)
    found: list[list[Tensor]] = []
    with ss.launch(compiled, model, backend="inline") as job:
        for _ in range(steps):
            job.step(x)
            found.append([job.gradients()[f"weights.{i}"].double() for i in range(2)])
    return found


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_mean_and_variance() -> None:
    (mask,) = masks()[0][:1]
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - P)])
    assert abs(mask.mean().item() - 1) < 5 * (P / (1 - P) / WIDTH) ** 0.5
    assert mask.var().item() == pytest.approx(P / (1 - P), rel=0.05)


def test_layers_steps_and_seeds_are_independent() -> None:
    first, second = masks(steps=2)
    other = masks(seed=1)[0]
    limit = 5 / WIDTH**0.5
    assert abs(correlation(first[0], first[1])) < limit  # layers
    assert abs(correlation(first[0], second[0])) < limit  # steps
    assert abs(correlation(first[0], other[0])) < limit  # seeds
    assert abs(correlation(first[0][1:], first[0][:-1])) < limit  # neighbours


def test_samples_and_microbatches_are_independent() -> None:
    """The sum over n independent masks has n times the variance of one; of n equal ones it has n² times."""
    whole = masks(batch=4)[0][0]
    assert whole.var().item() == pytest.approx(4 * P / (1 - P), rel=0.05)
    for plan in ("data_parallel:microbatches=4", "data_parallel:ways=2,microbatches=2"):
        assert torch.allclose(masks(plan, batch=4)[0][0], whole)


def test_evaluation_drops_nothing() -> None:
    found = subject("bert")
    compiled = ss.compile(
        found.model, (), found.kwargs, cluster=ss.Cluster.local(2), plan="megatron:tensor=2", dtype="f64"
    )
    with ss.launch(compiled, found.model, backend="inline") as job, torch.no_grad():
        got = job.evaluate(**found.kwargs)
        assert got["loss"] == pytest.approx(found.model.eval()(**found.kwargs).loss.item(), rel=1e-5)


def test_a_run_can_be_repeated() -> None:
    found = subject("t5")
    plan = found.compile(ONE, 1, ADAM)
    assert run(plan, found.model, found.args, {}).losses == run(plan, found.model, found.args, {}).losses
