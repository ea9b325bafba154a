"""Tensors that a model's code holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trace_running import assert_same_as_torch

from superscaler.errors import TraceError
from superscaler.trace import trace


class Holding(nn.Module):
    """Tensors of all kinds beside parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(100, 4)
        self.table = torch.randn(100)
        self.scale = torch.tensor(0.5)
        self.weights = torch.tensor([0.5, 0.25, 3.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x * self.table) * self.weights * self.scale
        h = h[torch.tensor([2, 0, 1])] * torch.tensor([[1.0], [2.0], [2.0]])
        return (h + torch.tensor([[0, 1, 2, 3]])).square().mean() + torch.tensor(7.0)


def test_small_ones_are_ops_and_large_ones_state() -> None:
    torch.manual_seed(0)
    traced = assert_same_as_torch(Holding(), (torch.randn(3, 100),))
    assert [t.name for t in traced.graph.tensors if t.kind == "buffer"] == ["table"]
    assert traced.state["table"] == ("table",)


class Written(nn.Module):
    """A large tensor written in the forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * torch.tensor([i * i % 97 / 97 for i in range(100)])).mean()


def test_a_large_one_that_nothing_holds_is_refused() -> None:
    with pytest.raises(TraceError, match="register it as a buffer"):
        trace(Written(), (torch.randn(3, 100),))
