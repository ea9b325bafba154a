"""Cutting a model into stages: anywhere in a plain chain, between the layers of a residual one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.errors import PlanError
from superscaler.plans import Planner
from superscaler.trace import trace
from tests.exact import assert_exact
from tests.test_exactness import CLIPPED


class Chain(nn.Module):
    """Linear layers one after another: every place to cut is as narrow as every other."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x * x).mean()


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_chain_is_cut_into_equal_stages(stages: int) -> None:
    planner = Planner(trace(Chain(12), (torch.randn(4, 8),)).graph, ss.Cluster.local(stages))
    linears = [len(stage.find(op="linear")) for stage in planner.stages(stages)]
    assert sum(linears) == 12
    assert max(linears) - min(linears) <= 1


def test_a_chain_in_a_pipeline_is_exact() -> None:
    torch.manual_seed(0)
    assert_exact(Chain(5), (torch.randn(6, 8),), "pipeline:stages=4,microbatches=3", 4, optimizer=CLIPPED)


def test_more_stages_than_places_is_refused() -> None:
    planner = Planner(trace(Chain(1), (torch.randn(4, 8),)).graph, ss.Cluster.local(64))
    with pytest.raises(PlanError, match="cannot be cut into 64 stages"):
        planner.stages(64)
