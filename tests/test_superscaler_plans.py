"""SuperScaler's own plans, and ZeRO and dynamic axial parallelism, on the models they are for; exact as DESIGN §6."""

from __future__ import annotations

import pytest
import torch

import superscaler as ss
from superscaler.errors import ClusterError, PlanError, UsageError
from superscaler.ir.graph import Graph
from superscaler.models import build
from superscaler.transforms.blocks import FREE
from superscaler.transforms.usage import writes
from tests.exact import assert_exact
from tests.test_exactness import CLIPPED, gpt


@pytest.mark.parametrize(("plan", "devices"), [
    ("zero:level=1,data=3", 3),
    ("zero:level=2,data=2,microbatches=2", 2),
    ("zero:level=3,data=2,tensor=2,microbatches=2", 4),
    ("zero:level=3,data=2,replicas=2", 4),
    ("co_shard:parts=4", 1),
    ("co_shard:parts=3,data=2", 2),
    ("co_shard:parts=2,tensor=2,pipeline=2,microbatches=2", 4),
    ("interlaced:stages=2,microbatches=4", 2),
    ("interlaced:stages=2,tensor=2,microbatches=2", 4),
])  # fmt: skip
def test_gpt(plan: str, devices: int) -> None:
    model, args = gpt()
    assert_exact(model, args, plan, devices, optimizer=CLIPPED, evaluate=True)


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "devices"), [
    ("zero:level=3,data=8,microbatches=1", 8),
    ("co_shard:parts=3,data=2,tensor=2,pipeline=2,microbatches=3", 8),
    ("interlaced:stages=4,tensor=2,microbatches=7", 8),
])  # fmt: skip
def test_gpt_of_odd_sizes(plan: str, devices: int) -> None:
    model, args = gpt(11, layers=5, heads=7, hidden=35, vocab=53, context=13)
    assert_exact(model, args, plan, devices, optimizer=CLIPPED)


def tiny(name: str, batch: int = 4) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model, example = build(name, "tiny")
    return model, example(batch, None)


@pytest.mark.parametrize(("name", "plan", "devices"), [
    ("swin", "co_shard:parts=2", 1),
    ("t5", "interlaced:stages=2,microbatches=2", 2),
])  # fmt: skip
def test_models(name: str, plan: str, devices: int) -> None:
    model, args = tiny(name)
    assert_exact(model, args, plan, devices, optimizer=CLIPPED)


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "devices"), [
    ("three_f_one_b:stages=2,microbatches=4", 2),
    ("dap:ways=2,data=2", 4),
    ("zero:level=3,data=2", 2),
])  # fmt: skip
def test_alphafold2(plan: str, devices: int) -> None:
    model, args = tiny("alphafold2")
    assert_exact(model, args, plan, devices, optimizer=CLIPPED)


def wide(**sizes: int) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    model, example = build("gpt", "tiny", hidden=64, layers=4, vocab=512, **sizes)
    return model, example(8, None)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_zero_holds_what_the_paper_says(level: int) -> None:
    """Rajbhandari et al. 2020, §5: of 4Ψ parameter, 4Ψ gradient and 8Ψ AdamW bytes, which are divided by N."""
    ways = 8
    model, args = wide()
    plan = ss.compile(
        model, args, cluster=ss.Cluster.local(ways), plan=f"zero:level={level},data={ways}", optimizer=ss.AdamW(),
        evaluate=False,
    )  # fmt: skip
    psi = 4 * sum(p.numel() for p in model.parameters())
    expected = (psi / ways if level == 3 else psi) + (psi / ways if level > 1 else psi) + 2 * psi / ways
    assert held_by_worker(plan) == pytest.approx(expected, rel=0.05)


def held_by_worker(plan: ss.Plan) -> int:
    """Bytes of parameters and optimizer state in the plan's worker 0, and the most it holds of gradients at once."""
    entry = plan.entries["train"]
    program = entry.programs[0]
    mesh = plan.space.mesh(plan.state[0].layout.mesh)
    state = sum(plan.space.region(s.shape, s.layout, mesh.coords(0)).volume * 4 for s in plan.state)
    gradients = {n for name in entry.graph.gradients.values() for n in (name, *base_of(entry.graph, name))}
    size = {b.value: b.size for b in program.buffers if program.values[b.value].tensor in gradients}
    live: set[int] = set()
    most = 0
    for item in program.order:
        live |= {v for step in program.blocks[item.block].steps for v in writes(step) if v in size}
        most = max(most, sum(size[v] for v in live))
        live -= set(program.frees[item.frees]) if item.frees >= 0 else set()
    return state + most


def base_of(graph: Graph, tensor: str) -> list[str]:
    """What a gradient is a view of."""
    op = graph.producer[tensor]
    return [op.inputs[0], *base_of(graph, op.inputs[0])] if op.target in FREE else []


@pytest.mark.parametrize(("plan", "error", "says"), [
    ("interlaced:stages=2", PlanError, "no embedding and head"),
    ("three_f_one_b:stages=2", PlanError, "nothing to recycle"),
    ("zero:level=4,data=2", UsageError, "levels 1, 2 and 3"),
    ("zero:level=1,datta=2", UsageError, "did you mean 'data'"),
    ("co_shard:parts=0", PlanError, "at least one part"),
    ("dap:ways=64", ClusterError, "the plan needs 64 devices, the cluster has 4"),
])  # fmt: skip
def test_what_does_not_apply_is_refused_before_anything_runs(plan: str, error: type[Exception], says: str) -> None:
    model, args = tiny("swin")
    with pytest.raises(error, match=says):
        ss.compile(model, args, cluster=ss.Cluster.local(4), plan=plan)
