"""Models built without their memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from superscaler.trace import trace
from superscaler.trace.building import without_memory


class Wide(nn.Module):
    """A terabyte of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1 << 19, 1 << 19, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean()


def test_a_model_that_no_machine_holds_is_built_and_traced() -> None:
    model, x = without_memory(lambda: (Wide(), torch.randn(4, 1 << 19)))
    assert isinstance(model.linear.weight, FakeTensor)
    graph = trace(model, (x,)).graph
    assert graph.tensor["linear.weight"].bytes == 1 << 40


def test_a_module_that_reads_values_while_it_is_made_is_real() -> None:
    def make() -> nn.Linear:
        return nn.Linear(int(torch.tensor([3, 5]).sum().item()), 2)

    made = without_memory(make)
    assert made.in_features == 8
    assert not isinstance(made.weight, FakeTensor)


def test_other_errors_are_not_hidden() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        without_memory(fail)
