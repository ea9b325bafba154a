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
from superscaler.runtime.ops import sleep
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


class Sleeper(nn.Module):
    """A forward, an input gradient and a weight gradient of 20 ms each, and nothing that says where a layer ends."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sleep(x, 20.0) * sleep(self.scale, 0.0, 20.0)


class Sleepers(nn.Module):
    """So many of them, and a loss."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Sleeper() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().sum()


@pytest.mark.parametrize(("count", "stages"), [(4, 4), (8, 4), (6, 3)])
def test_stages_end_where_layers_do(count: int, stages: int) -> None:
    """Where that costs no more: several places of a layer are as narrow and as even."""
    planner = Planner(trace(Sleepers(count), (torch.randn(4, 8),)).graph, ss.Cluster.local(stages))
    modules = [{op.module for op in stage.ops if op.module} for stage in planner.stages(stages)]
    assert [len(found) for found in modules] == [count // stages] * stages


@pytest.mark.parametrize("schedule", ["zb_h1", "zb_v", "solve"])
def test_weight_gradients_of_sleeping_layers_are_tasks_of_their_own(schedule: str) -> None:
    """The backward of a stage is what another stage waits for, and as long as the weights' part."""
    stages = 4 if schedule == "zb_v" else 2
    script = f"pipeline:stages={stages},microbatches=4,schedule={schedule}"
    found = ss.compile(
        Sleepers(stages), (torch.randn(4, 8),), cluster=ss.Cluster.local(2), plan=script, optimizer=ss.SGD(lr=0.0)
    )
    entry = found.entries["train"]
    taken: dict[tuple[int, str], set[int]] = {}
    for program in entry.programs:
        for item in program.order:
            block = program.blocks[item.block]
            if block.kind in ("forward", "backward", "weight"):
                length = round((item.end - item.start) / 20_000)
                taken.setdefault((block.stage, block.kind), set()).add(length)
    later = range(1, stages)  # the first stage's input needs no gradient
    assert all(taken[stage, kind] == {1} for stage in later for kind in ("forward", "backward", "weight"))
    assert taken[0, "forward"] == taken[0, "weight"] == {1}
