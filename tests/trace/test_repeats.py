"""Modules that repeat are traced once, and the Graph is the same as if each had been traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trace_running import assert_same_as_torch

from superscaler import models
from superscaler.ir.graph import Graph
from superscaler.trace import capture, likeness, trace
from tests.cases import slow


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was traced: ``Entry`` for the model, ``RegionEntry`` for a repeated module."""
    seen: list[str] = []
    plain = capture.Tracing.capture

    def counted(self: Any, entry: Any, *rest: Any) -> Any:
        seen.append(type(entry).__name__)
        return plain(self, entry, *rest)

    monkeypatch.setattr(capture.Tracing, "capture", counted)
    return seen


def whole(monkeypatch: pytest.MonkeyPatch, traced: Callable[[], Graph]) -> Graph:
    """The graph when nothing is taken for repeated."""
    with monkeypatch.context() as patch:
        patch.setattr(likeness, "FEWEST", 10**9)
        return traced()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt", {"layers": 4, "dropout": 0.1}),
        slow("swin", {"depths": (4, 4)}),
        slow("alphafold2", {"blocks": 3}),
    ],
)
def test_the_graph_is_the_same(
    monkeypatch: pytest.MonkeyPatch, captures: list[str], name: str, settings: dict[str, Any], mode: Any
) -> None:
    model, inputs = models.build(name, "tiny", **settings)
    batch = inputs(2)
    if name == "swin":  # two like windows and two like shifted ones in each stage
        monkeypatch.setattr(likeness, "FEWEST", 2)
    once = trace(model, batch, mode=mode).graph
    assert "RegionEntry" in captures
    assert once == whole(monkeypatch, lambda: trace(model, batch, mode=mode).graph)


def test_a_deep_model_costs_one_block(captures: list[str]) -> None:
    model, inputs = models.build("gpt", "tiny", layers=24)
    trace(model, inputs(2))
    assert captures == ["Entry", "RegionEntry"]


class Block(nn.Module):
    """A block that does what ``extra`` says beside a residual layer."""

    def __init__(self, number: int, extra: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.number = number
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.unused = nn.Parameter(torch.randn(2))
        self.register_buffer("average", torch.ones(4))
        self.extra = extra
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.extra(self, torch.tanh(self.linear(self.norm(x))))
        return x + h, h


class Stack(nn.Module):
    """Three blocks, of whose second results the loss sees one."""

    def __init__(self, extra: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(i, extra) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        side = x.new_zeros(())
        for i, block in enumerate(self.blocks):
            x, h = block(x)
            if i == 1:
                side = h.square().mean()
        return x.square().mean() + side + sum(b.seen.sum() for b in self.blocks if b.seen is not None)


def plain(m: Any, h: Tensor) -> Tensor:
    return h


def writes_buffer(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        m.average.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return h * m.average


def replaces_buffer(m: Any, h: Tensor) -> Tensor:
    m.average = m.average * 0.9 + h.detach().mean(0)
    return h * m.average


def leaves_something(m: Any, h: Tensor) -> Tensor:
    m.seen = h.exp()
    return h


def reads_its_number(m: Any, h: Tensor) -> Tensor:
    return h * (m.number + 1)


def counts_by_its_number(m: Any, h: Tensor) -> Tensor:
    return h * 2 if m.number else h


def writes_its_input(m: Any, h: Tensor) -> Tensor:
    return (h + 1).mul_(2)


REGULAR = (plain, writes_its_input)  # the latter writes a value of its own
IRREGULAR = (writes_buffer, replaces_buffer, leaves_something, reads_its_number, counts_by_its_number)


class Skipping(Stack):
    """One of its blocks is never called."""

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.blocks[0], self.blocks[2]):
            x, _ = block(x)
        return x.square().mean()


def test_what_is_never_called_is_state_all_the_same(captures: list[str]) -> None:
    model = Skipping(plain)
    traced = trace(model, (torch.randn(5, 4),))
    assert "RegionEntry" in captures
    assert {t.name for t in traced.graph.state()} == {*dict(model.named_parameters()), *dict(model.named_buffers())}


@pytest.mark.parametrize("extra", [*REGULAR, *IRREGULAR], ids=lambda f: f.__name__)
def test_whatever_else_a_block_does(captures: list[str], extra: Any) -> None:
    torch.manual_seed(0)
    assert_same_as_torch(Stack(extra), (torch.randn(5, 4),))
    assert ("RegionEntry" in captures) == (extra in REGULAR)


def test_a_hook_on_an_inner_module_is_run(captures: list[str]) -> None:
    torch.manual_seed(0)
    model = Stack(plain)
    model.blocks[1].linear.register_forward_hook(lambda module, args, output: output * 3)
    assert_same_as_torch(model, (torch.randn(5, 4),))
    assert "RegionEntry" not in captures


class Decayed(nn.Module):
    """The loss looks at every parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(i, plain) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
        return x.square().mean() + 0.1 * torch.stack([p.square().sum() for p in self.parameters()]).sum()


class FirstWeight(Decayed):
    """The loss reaches into one block."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
        return x.square().mean() + self.blocks[0].linear.weight.sum()


@pytest.mark.parametrize("build", [Decayed, FirstWeight])
def test_a_loss_of_the_parameters_themselves(captures: list[str], build: Any) -> None:
    torch.manual_seed(0)
    assert_same_as_torch(build(), (torch.randn(5, 4),))
    assert captures[-1] == "Entry"


class Tied(nn.Module):
    """Blocks that share a weight with one another and with the head; one of them runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(i, plain) for i in range(4))
        self.head = nn.Linear(4, 4, bias=False)
        for block in self.blocks[1:]:
            block.linear.weight = self.blocks[0].linear.weight
        self.head.weight = self.blocks[0].linear.weight

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)[0]
        return self.head(x).square().mean()


def test_weights_shared_between_repeated_modules() -> None:
    torch.manual_seed(0)
    traced = assert_same_as_torch(Tied(), (torch.randn(5, 4),))
    (last,) = (op for op in traced.graph.ops if op.outputs == (traced.graph.gradients["blocks.0.linear.weight"],))
    assert (last.target, len(last.inputs)) == ("superscaler.add_n", 6)


class Penalised(nn.Module):
    """The loss holds the gradient of what the blocks give."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(i, plain) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
        weight = self.blocks[0].linear.weight
        (gradient,) = torch.autograd.grad(x.square().sum(), weight, create_graph=True, allow_unused=True)
        return x.mean() if gradient is None else gradient.square().mean()


def test_gradients_of_gradients_are_traced_whole(captures: list[str]) -> None:
    torch.manual_seed(0)
    assert_same_as_torch(Penalised(), (torch.randn(5, 4),))
    assert captures[-1] == "Entry"


class Recycled(nn.Module):
    """A stack that runs twice without a gradient, then once with one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(i, plain) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for cycle in range(3):
            with torch.set_grad_enabled(cycle == 2):
                y = y * 0.5 + x
                for block in self.blocks:
                    y = block(y)[0]
        return y.square().mean()


def test_recycling(captures: list[str]) -> None:
    torch.manual_seed(0)
    assert_same_as_torch(Recycled(), (torch.randn(5, 4),))
    assert captures.count("RegionEntry") == 3, (
        "forward, forward and backward with a fixed input, and with a changing one"
    )


def test_transformers_layers_are_repeated(captures: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    ids = torch.randint(64, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": mask}
    assert_same_as_torch(transformers.LlamaForCausalLM(config), kwargs=inputs)
    assert captures == ["Entry", "RegionEntry"]
