"""``compile``: the decorator's plan and what overrides it, how losses are found, what is refused."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.errors import ClusterError, InfeasiblePlan, PlanError, UsageError


@ss.plan("data_parallel:ways=2")
class Net(nn.Module):
    """Two layers with a squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 8)
        self.two = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x))).square().mean()


def batch() -> tuple[torch.Tensor]:
    return (torch.ones(4, 6),)


def test_the_decorators_plan_is_used_unless_another_is_given() -> None:
    cluster = ss.Cluster.local(2)
    assert ss.compile(Net(), batch(), cluster=cluster).workers == 2
    assert ss.compile(Net(), batch(), cluster=cluster, plan="data_parallel:ways=1").workers == 1
    assert ss.compile(Net(), batch(), cluster=cluster, plan=ss.plans.pipeline(2, 2)).workers == 2


def test_a_plan_of_ones_own_is_a_function() -> None:
    def mine(p: ss.Planner) -> None:
        first, second = p.find(op="linear")
        p.assign(p.split(first, dim="o", ways=2), [0, 1])
        p.assign(p.split(second, dim="h", ways=2), [0, 1])

    plan = ss.compile(Net(), batch(), cluster=ss.Cluster.local(2), plan=mine)
    layouts = {tensor.name: str(tensor.layout) for tensor in plan.state}
    assert "S0" in layouts["one.weight"]
    assert "S1" in layouts["two.weight"]


def test_what_is_decorated_or_decorates_wrongly_is_told() -> None:
    """Not later, if ever: a plan on one module, or of a function that runs nothing, would be lost."""

    def yields(p: ss.Planner):  # type: ignore[no-untyped-def]
        yield p.microbatches(2)

    async def waits(p: ss.Planner) -> None:
        p.microbatches(2)

    for wrong in (Net, 5, yields, waits):
        with pytest.raises(UsageError, match=r"is no plan|runs nothing"):
            ss.plan(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"is no plan|runs nothing"):
            ss.compile(Net(), batch(), cluster=ss.Cluster.local(2), plan=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="decorates a module class, not a Net"):
        ss.plan("data_parallel:ways=2")(Net())


@pytest.mark.parametrize("wrong", [{"time_limit": -1.0}, {"time_limit": float("nan")}, {"seed": "1"}])
def test_a_search_that_cannot_be_limited_so_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ss.compile(Net(), batch(), cluster=ss.Cluster.local(1), **wrong)  # type: ignore[arg-type]


def test_the_loss_is_found_or_told() -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            found = self.linear(x)
            return SimpleNamespace(loss=found.square().mean(), other=found)

    x = batch()
    model = Output()
    for loss in (None, lambda output: output.other.sum()):
        plan = ss.compile(model, x, cluster=ss.Cluster.local(1), loss=loss, evaluate=False)
        with ss.launch(plan, model, backend="inline") as job:
            output = model(*x)
            assert job.step(*x) == pytest.approx((output.loss if loss is None else loss(output)).item())


def test_the_model_is_not_changed_by_compiling() -> None:
    model = Net().eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ss.compile(model, batch(), cluster=ss.Cluster.local(2), optimizer=ss.SGD())
    assert not model.training
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_garbage_is_collected_after_compiling_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superscaler.api.check", lambda plan: seen.append(gc.isenabled()))
    seen: list[bool] = []
    ss.compile(Net(), batch(), cluster=ss.Cluster.local(2))
    assert seen == [False]
    assert gc.isenabled()


def test_too_small_a_cluster_is_refused() -> None:
    with pytest.raises(ClusterError, match="the plan needs 2 devices, the cluster has 1"):
        ss.compile(Net(), batch(), cluster=ss.Cluster.local(1), plan=ss.plans.pipeline(2))


def test_too_little_memory_is_refused_with_figures() -> None:
    with pytest.raises(InfeasiblePlan, match=r"no schedule fits worker 0's 107 B") as told:
        ss.compile(Net(), batch(), cluster=ss.Cluster.local(2, memory=1e-7))
    assert "limits in conflict: memory[0]" in str(told.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("dataparallel", "did you mean 'data_parallel'?"), ("megatron:tensors=2", "did you mean 'tensor'?")],
)
def test_an_unknown_plan_or_option(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as told:
        ss.compile(Net(), batch(), cluster=ss.Cluster.local(2), plan=text)
    assert told.value.hint == hint


def test_a_plan_that_says_another_thing_of_evaluation() -> None:
    def plan(p: ss.Planner) -> None:
        ways = 2 if any(op.phase == "backward" for op in p.graph.ops) else 4
        p.split_batch(ways)
        p.assign(p.whole, range(ways), axes=("data",))

    with pytest.raises(PlanError, match="'data' differs between the entries") as refused:
        ss.compile(Net(), batch(), cluster=ss.Cluster.local(4), plan=plan)
    assert "2 ways in one and 4 in another" in str(refused.value)
    assert "try: " in str(refused.value)
