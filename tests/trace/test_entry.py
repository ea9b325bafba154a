"""Inputs by name, outputs by name, the loss wherever the model puts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trace_running import run

from superscaler import models
from superscaler.trace import trace


@dataclass
class Output:
    """What transformers' models return, in short."""

    logits: Tensor
    loss: Tensor | None = None


class Model(nn.Module):
    """Returns its results in the form asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.form = form

    def forward(self, x: Tensor, labels: Tensor | None = None, *, scale: float = 1.0, extra: Any = None) -> Any:
        logits = self.dropout(self.linear(x)) * scale
        for tensor in (extra or {}).values():
            logits = logits + tensor
        if labels is None:
            return logits
        loss = F.cross_entropy(logits, labels)
        return {"scalar": loss, "dict": {"loss": loss, "logits": logits}, "object": Output(logits, loss)}[self.form]


X, LABELS = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, -100])


def test_inputs_are_named_by_the_signature() -> None:
    extra = {"shift": torch.randn(3), "more": torch.randn(1)}
    traced = trace(Model("scalar"), (X,), {"extra": extra, "labels": LABELS, "scale": 2.0})
    graph = traced.graph
    assert graph.inputs == ("x", "labels", "extra.shift", "extra.more")  # in the signature's order
    assert [graph.tensor[name].kind for name in graph.inputs] == ["input"] * 4
    assert traced.call == {"x": "", "labels": "", "scale": "2.0", "extra.shift": "", "extra.more": ""}
    assert trace(Model("scalar"), (X, LABELS)).call == {"x": "", "labels": "", "scale": "1.0", "extra": "None"}


def test_the_loss_is_found() -> None:
    graphs = [trace(Model(form), (X, LABELS)).graph for form in ("scalar", "dict", "object")]
    assert graphs[0] == graphs[1]
    assert all(graph.outputs == {"loss": "div"} for graph in graphs)


def test_a_loss_of_the_callers() -> None:
    graph = trace(Model("scalar"), (X,), loss=lambda logits: logits.square().mean()).graph
    assert set(graph.outputs) == {"loss"}
    assert set(graph.gradients) == {"linear.weight", "linear.bias"}


def test_evaluation_gives_every_tensor_and_no_gradient() -> None:
    model = Model("dict").train()
    traced = trace(model, (X, LABELS), mode="eval", dtype="f64")
    assert set(traced.graph.outputs) == {"loss", "logits"}
    assert not traced.graph.gradients
    assert {op.phase for op in traced.graph.ops} == {"forward"}
    assert not any(op.target == "superscaler.dropout" for op in traced.graph.ops)
    assert model.training
    values = run(traced.graph, traced.values(model), (X.double(), LABELS))
    expected = model.double().eval()(X.double(), LABELS)
    for name, tensor in traced.graph.outputs.items():
        torch.testing.assert_close(values[tensor], expected[name])


def test_parts_that_are_frozen_stay_so() -> None:
    model = Model("scalar").train()
    model.dropout.eval()
    assert not any(op.target == "superscaler.dropout" for op in trace(model, (X, LABELS)).graph.ops)
    assert any(op.target == "superscaler.dropout" for op in trace(model.eval(), (X, LABELS)).graph.ops)
    assert not model.training


def test_evaluation_needs_no_loss() -> None:
    assert set(trace(Model("scalar"), (X,), mode="eval").graph.outputs) == {"output"}


def test_two_traces_are_one_graph() -> None:
    model, inputs = models.build("gpt", "tiny", dropout=0.1)
    assert trace(model, inputs(2)).graph == trace(model, inputs(2, seed=1)).graph


def test_tracing_draws_no_random_number() -> None:
    model, inputs = models.build("gpt", "tiny", dropout=0.1, layers=3)
    batch = inputs(2)
    before = torch.get_rng_state()
    trace(model, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_once_for_both_directions() -> None:
    model, inputs = models.build("gpt", "tiny", dropout=0.1, layers=1)
    graph = trace(model, inputs(2)).graph
    drops = [op for op in graph.ops if op.target == "superscaler.dropout"]
    assert [op.phase for op in drops] == ["forward"] * 3 + ["backward"] * 3
    assert [op.link for op in reversed(drops[3:])] == [op.name for op in drops[:3]]


def test_gradients_under_dropout_are_the_derivative_of_the_loss() -> None:
    torch.manual_seed(0)
    model, inputs = models.build("gpt", "tiny", dropout=0.3)
    batch = inputs(2)
    traced = trace(model, batch, dtype="f64")
    state = traced.values(model)
    values = run(traced.graph, state, batch)
    direction = {name: torch.randn_like(state[name]) for name in traced.graph.gradients}

    def loss(step: float) -> Tensor:
        moved = state | {name: state[name] + step * d for name, d in direction.items()}
        return run(traced.graph, moved, batch)[traced.graph.outputs["loss"]]

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    told = sum((values[tensor] * direction[name]).sum() for name, tensor in traced.graph.gradients.items())
    assert abs(slope - told) < 1e-6 * abs(told)


def test_random_tensors_have_a_key_of_their_own() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            keep = torch.bernoulli(torch.full_like(x, 0.5))
            return (self.linear(x + torch.randn_like(x)) * keep * torch.rand(4)).mean()

    traced = trace(Noisy(), (X,), dtype="f64")
    drawn = {op.target for op in traced.graph.ops if "#key" in op.args}
    assert drawn == {"superscaler.uniform", "superscaler.normal"}
    run(traced.graph, traced.values(Noisy()), (X.double(),))
