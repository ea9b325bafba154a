"""bfloat16: parameters and activations are, masters, moments, gradients and their sums are float32 (DESIGN §2)."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.entry import MASTER
from superscaler.ir.plan import Plan
from superscaler.ir.program import Accumulate, Collective
from superscaler.models import build
from superscaler.runtime.job import Job
from superscaler.runtime.ops import function

ADAM = ss.AdamW(lr=3e-3, clip_norm=1.0)
PLANS = [
    ("data_parallel:ways=1", 1),
    ("data_parallel:ways=2,microbatches=2", 2),
    ("zero:level=3,data=2,microbatches=2", 2),
    ("megatron:tensor=2,pipeline=2,microbatches=2", 4),
]


@lru_cache(maxsize=1)
def gpt() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    return model, example(4, 16)


def compiled(plan: str, devices: int, optimizer: ss.AdamW | ss.SGD = ADAM) -> Plan:
    model, batch = gpt()
    cluster = ss.Cluster.local(devices)
    return ss.compile(model, batch, cluster=cluster, plan=plan, optimizer=optimizer, dtype="bf16", evaluate=False)


def losses(plan: Plan, steps: int) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """The losses of so many steps on one batch, the parameters and the optimizer's state after them."""
    model, batch = gpt()
    with ss.launch(plan, model, backend="inline") as job:
        return [job.step(*batch) for _ in range(steps)], job.state_dict(), job.optimizer_state()


@pytest.mark.parametrize(("plan", "devices"), PLANS)
def test_what_is_wide(plan: str, devices: int) -> None:
    found = compiled(plan, devices)
    graph = found.entries["train"].graph
    assert {t.dtype for t in graph.tensors if t.kind == "parameter"} == {"bfloat16"}
    assert {t.dtype for t in graph.tensors if t.kind == "optimizer"} == {"float32"}
    assert {f"{n}{MASTER}" for n in graph.gradients} <= {t.name for t in found.state}
    for program in found.entries["train"].programs:
        values = program.values
        for step in (s for block in program.blocks for s in block.steps):
            if isinstance(step, Accumulate):
                assert graph.tensor[values[step.into].tensor].dtype == "float32"
            sums = isinstance(step, Collective) and step.kind in ("all_reduce", "reduce_scatter")
            if sums and values[step.src].tensor in graph.gradients.values():
                assert graph.tensor[values[step.src].tensor].dtype == "float32"


@lru_cache(maxsize=1)
def autocast(steps: int) -> list[float]:
    """The losses of plain torch: float32 parameters, bfloat16 where autocast wants it."""
    torch.manual_seed(0)
    model, batch = gpt()
    copy, _ = build("gpt", "tiny")
    copy.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(copy.parameters(), lr=ADAM.lr)
    found: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = copy(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(copy.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("plan", "devices"), PLANS)
def test_the_loss_curve_is_that_of_autocast(plan: str, devices: int) -> None:
    found, state, optimizer = losses(compiled(plan, devices), 20)
    expected = autocast(20)
    assert expected[-1] < 0.8 * expected[0]
    assert found == pytest.approx(expected, rel=0.02)
    for name, parameter in state.items():
        if name + MASTER in optimizer:
            assert torch.equal(parameter, optimizer[name + MASTER].to(torch.bfloat16)), name


def test_the_master_keeps_what_a_parameter_would_round_away() -> None:
    """Steps of 1/1000 of the distance between neighbours in bfloat16 add up."""
    tiny = ss.SGD(lr=1e-6)
    _, start, before = losses(compiled(*PLANS[0], tiny), 0)
    _, state, after = losses(compiled(*PLANS[0], tiny), 4)
    name = next(n for n in start if f"{n}{MASTER}" in before and start[n].ndim == 2)
    moved = after[name + MASTER] != before[name + MASTER]
    assert moved.float().mean() > 0.5
    assert (state[name] != start[name]).float().mean() < 0.01  # most steps are too small to show yet


def test_masters_start_as_the_model() -> None:
    """Not as its parameters rounded to bfloat16."""
    model, _ = gpt()
    _, _, state = losses(compiled(*PLANS[1]), 0)
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name + MASTER], parameter.detach())


def test_without_an_optimizer_gradients_are_summed_in_float32() -> None:
    model, batch = gpt()
    plan = ss.compile(
        model, batch, cluster=ss.Cluster.local(2), plan="data_parallel:ways=2,microbatches=2", dtype="bf16"
    )
    assert {plan.entries["train"].graph.tensor[t].dtype for t in plan.entries["train"].graph.gradients.values()} == {
        "float32"
    }
    with ss.launch(plan, model, backend="inline") as job:
        job.step(*batch)
        model.zero_grad()
        model(*batch).backward()
        for name, gradient in job.gradients().items():
            expected = model.get_parameter(name).grad
            assert expected is not None
            assert (gradient - expected).norm() < 0.05 * expected.norm() + 1e-4, name


@pytest.mark.parametrize("target", ["embedding_backward", "gather_backward", "index_backward"])
def test_many_small_terms_add_up(target: str) -> None:
    """4096 times 1 is 4096; summed in bfloat16 it is 256."""
    ids, grad = torch.zeros(4096, dtype=torch.long), torch.ones(4096, 1, dtype=torch.bfloat16)
    arguments = {
        "embedding_backward": (grad, ids, 1, None, None),
        "gather_backward": (grad, ids.unsqueeze(1), (1, 1), 0),
        "index_backward": (grad, [ids], (1, 1)),
    }
    assert function(f"superscaler.{target}")(*arguments[target]).item() == 4096


@pytest.mark.parametrize(("before", "after"), [("f32", "bf16"), ("bf16", "f32"), ("f64", "bf16"), ("bf16", "bf16")])
def test_a_checkpoint_goes_on_in_another_type(before: str, after: str, tmp_path: Path) -> None:
    """Parameters become master weights, and master weights parameters: nothing that was kept is rounded."""
    types = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}
    torch.manual_seed(0)
    model, batch = nn.Linear(6, 6), torch.randn(4, 6)

    def compiled(dtype: str) -> Plan:
        return ss.compile(
            copy.deepcopy(model).to(torch.float64 if dtype == "f64" else torch.float32), (batch,), dtype=dtype,
            cluster=ss.Cluster.local(2), plan="data_parallel:ways=2", loss=lambda y: y.square().mean(),
            optimizer=ss.AdamW(lr=1e-2), evaluate=False,
        )  # type: ignore[arg-type]  # fmt: skip

    def kept(job: Job) -> Tensor:
        return job.optimizer_state().get("weight" + MASTER, job.state_dict()["weight"])

    with ss.launch(compiled(before), init_seed=0, backend="inline") as job:
        for _ in range(2):
            job.step(batch.to(types[before]))
        job.save_checkpoint(tmp_path / "kept")
        expected = kept(job)
    with ss.launch(compiled(after), init_seed=1, backend="inline") as job:
        job.load_checkpoint(tmp_path / "kept")
        assert torch.equal(kept(job), expected.float())
        assert torch.equal(job.state_dict()["weight"], expected.to(types[after]))
        assert job.steps == 2
        job.step(batch.to(types[after]))
