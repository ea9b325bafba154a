"""Dtypes: float32 by default, float64 through and through, bfloat16 with float32 where sums need it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trace_running import run

from superscaler import models
from superscaler.trace import trace
from superscaler.trace.promote import Float64Mode


class Casting(nn.Module):
    """Casts to float32 inside, as norms and losses of real models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))
        self.constant = torch.tensor([0.5, 0.25, 3.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x).float() + self.table + self.constant + torch.arange(4, dtype=torch.float32) / 3
        h = torch.softmax(h, -1, dtype=torch.float32).to(torch.float32) + torch.full((4,), 0.1)
        return (h * h.new_ones(4, dtype=torch.float32)).square().mean()


def test_float64_is_promoted_throughout() -> None:
    graph = trace(Casting(), (torch.randn(3, 4),), dtype="f64").graph
    assert {t.dtype for t in graph.tensors if "float" in t.dtype} == {"float64"}


@pytest.mark.parametrize("name", ["gpt", "swin", "t5"])
def test_float64_of_our_models(name: str) -> None:
    model, inputs = models.build(name, models.preset_names(name)[0])
    graph = trace(model, inputs(2), dtype="f64").graph
    assert {t.dtype for t in graph.tensors if "float" in t.dtype} == {"float64"}


def test_the_mode_is_undone() -> None:
    with Float64Mode():
        assert torch.ones(2).float().dtype == torch.float64
        assert torch.ones(2, dtype=torch.float16).dtype == torch.float64
    assert torch.ones(2).dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_float32_is_plain_float32() -> None:
    torch.manual_seed(0)
    model, inputs = models.build("gpt", "tiny")
    batch = inputs(2)
    traced = trace(model, batch)
    values = run(traced.graph, traced.values(model), batch)
    torch.testing.assert_close(values[traced.graph.outputs["loss"]], model(*batch).detach())


def test_bfloat16_keeps_losses_and_their_statistics_in_float32() -> None:
    torch.manual_seed(0)
    model, inputs = models.build("gpt", "tiny")
    batch = inputs(2)
    traced = trace(model, batch, dtype="bf16")
    graph = traced.graph
    assert {t.dtype for t in graph.tensors if t.kind == "parameter"} == {"bfloat16"}
    loss = graph.tensor[graph.outputs["loss"]]
    assert loss.dtype == "float32"
    assert {graph.tensor[op.outputs[1]].dtype for op in graph.ops if op.target == "superscaler.attention"} == {
        "float32"
    }
    values = run(graph, traced.values(model), batch)
    assert abs(values[loss.name] - model(*batch)) < 0.02
    for name, gradient in graph.gradients.items():
        assert values[gradient].isfinite().all(), name
