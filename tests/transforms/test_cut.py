"""Cutting a model into stages: anywhere in a plain chain, between the layers of a residual one."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.errors import PlanError
from superscaler.plans import Planner
from superscaler.plans.placement import pipeline_stages
from superscaler.trace import trace
from tests.exact import as_double, assert_exact, compare, reference, run
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


def mixed(*speeds: float) -> ss.Cluster:
    """A device of each speed."""
    local = ss.Cluster.local(len(speeds))
    kinds = tuple(msgspec.structs.replace(local.kinds[0], speed=speed) for speed in speeds)
    return msgspec.structs.replace(local, kinds=kinds, devices=tuple(range(len(speeds))))


@pytest.mark.parametrize(
    ("speeds", "linears"), [((1, 1, 1), [4, 4, 4]), ((1, 1, 2), [3, 3, 6]), ((3, 2, 1), [6, 4, 2])]
)
def test_stages_take_equal_time_where_they_lie(speeds: tuple[float, ...], linears: list[int]) -> None:
    planner = Planner(trace(Chain(12, 256), (torch.randn(64, 256),)).graph, mixed(*speeds))
    stages = pipeline_stages(planner, [[0], [1], [2]], 1)
    assert [len(stage.find(op="linear")) for stage in stages] == linears


def test_the_stages_of_a_v_take_equal_time_where_they_lie() -> None:
    planner = Planner(trace(Chain(12, 256), (torch.randn(64, 256),)).graph, mixed(1, 2))
    stages = pipeline_stages(planner, [[0], [1]], 1, "v")
    assert [len(stage.find(op="linear")) for stage in stages] == [2, 4, 4, 2]


def test_a_pipeline_on_mixed_devices_is_exact() -> None:
    torch.manual_seed(0)
    model, args = as_double(Chain(6, 128)), [as_double(torch.randn(12, 128))]
    cluster, plan = mixed(1, 2), ss.plans.pipeline(stages=2, microbatches=3)
    compiled = ss.compile(model, args, cluster=cluster, plan=plan, optimizer=CLIPPED, dtype="f64")
    compare(run(compiled, model, args, {}), reference(model, args, {}, None, CLIPPED), CLIPPED)
