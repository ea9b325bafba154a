"""Optimizer state in host memory: what it saves, when it moves, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

import superscaler as ss
from superscaler.errors import UsageError
from superscaler.ir.check.capacity import state_bytes
from superscaler.models import build
from superscaler.plans import parse
from superscaler.scheduler.entry_problem import AHEAD
from tests.cases import slow
from tests.exact import assert_exact
from tests.test_exactness import CLIPPED, gpt


def compiled(plan: str | ss.PlanScript, workers: int = 2, **options: object) -> ss.Plan:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny", layers=3)
    given = {"optimizer": ss.AdamW(clip_norm=1.0), "evaluate": False, **options}
    return ss.compile(model, example(8), cluster=ss.Cluster.local(workers), plan=plan, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("plan", "devices"), [
    ("zero:level=1,data=3,offload=true", 3),
    ("zero:level=3,data=2,tensor=2,microbatches=2,offload=true", 4),
])  # fmt: skip
def test_exact(plan: str, devices: int) -> None:
    model, args = gpt()
    assert_exact(model, args, plan, devices, optimizer=CLIPPED)


@pytest.mark.parametrize("level", [1, slow(2), 3])
def test_the_peak_falls_by_what_is_offloaded(level: int) -> None:
    kept, away = (compiled(f"zero:level={level},data=2,microbatches=2,offload={o}") for o in ("false", "true"))
    moments = sum(s.kind == "optimizer" for s in away.state)
    assert moments == sum(s.memory == "host" for s in away.state) > 0
    moved = state_bytes(away, "host")[0]
    assert moved == state_bytes(kept)[0] - state_bytes(away)[0]
    saved = kept.entries["train"].programs[0].peak - away.entries["train"].programs[0].peak
    assert saved == pytest.approx(moved, rel=0.01)


def test_master_weights_are_offloaded_too() -> None:
    away = compiled("zero:level=1,data=2,offload=true", dtype="bf16")
    assert {s.name.rpartition(".")[2] for s in away.state if s.memory == "host"} == {"exp_avg", "exp_avg_sq", "master"}


def test_every_layer_is_fetched_just_before_its_step_and_few_at_a_time() -> None:
    program = compiled("zero:level=1,data=2,offload=true").entries["train"].programs[0]
    here: list[str] = []
    backward = max(i for i, item in enumerate(program.order) if program.blocks[item.block].kind == "backward")
    for i, item in enumerate(program.order):
        block = program.blocks[item.block]
        what, _, layer = block.name.partition(":")[2].partition(":")
        if what == "fetch":
            here.append(layer)
            assert i >= backward
        elif what == "return":
            here.remove(layer)
        assert len(here) <= AHEAD + 1
    assert not here


def test_copies_go_on_while_others_compute() -> None:
    timeline = ss.simulate(compiled("zero:level=1,data=2,offload=true"))
    spans = timeline.roles[0].spans
    copies = [s for s in spans if s.lane == "transfer"]
    computed = [s for s in spans if s.lane == "compute"]
    assert any(c.start < s.end and s.start < c.end for c in copies for s in computed)


def test_a_scripts_own_choice_of_parameters() -> None:
    def plan(p: ss.Planner) -> None:
        p.assign(p.whole, [0])
        p.offload_state(name for name in p.parameters if name.startswith("blocks."))

    found = compiled(plan, workers=1)
    assert {s.memory for s in found.state if s.kind == "optimizer" and s.name.startswith("blocks.")} == {"host"}
    assert {s.memory for s in found.state if not s.name.startswith("blocks.")} == {"device"}


def test_the_host_links_bandwidth_decides_how_long_a_copy_takes() -> None:
    import msgspec

    cluster = ss.Cluster.local(1)
    slow = msgspec.structs.replace(cluster, host=msgspec.structs.replace(cluster.host, bandwidth=1e6))
    torch.manual_seed(0)
    model, example = build("gpt", "tiny", layers=1)

    def copying(on: ss.Cluster) -> int:
        plan = ss.compile(model, example(4), cluster=on, plan="zero:offload=true", optimizer=ss.AdamW(), evaluate=False)
        return ss.simulate(plan).roles[0].busy["transfer"]

    assert copying(slow) > 100 * copying(cluster)


def test_workers_report_what_lies_in_host_memory() -> None:
    torch.manual_seed(0)
    _, example = build("gpt", "tiny", layers=1)
    plan = compiled("zero:level=1,data=2,offload=true")
    with ss.launch(plan, build("gpt", "tiny", layers=3)[0], backend="inline") as job:
        job.step(*example(8))
        for worker, memory in enumerate(job.memory()):
            assert memory["host"] == state_bytes(plan, "host")[worker]
        moments = job.optimizer_state()
        assert all(torch.isfinite(t).all() for t in moments.values())
        assert any(t.abs().sum() > 0 for t in moments.values())
    assert "of state in host memory" in str(plan)


def test_explanations_say_where_the_state_lies() -> None:
    plan = compiled("zero:level=1,data=2,offload=true")
    moment = next(s.name for s in plan.state if s.memory == "host")
    assert "in host memory beside" in str(ss.explain(plan, moment))
    assert "of optimizer state in host memory" in str(ss.explain(plan, "0"))


def test_offload_is_true_or_false() -> None:
    with pytest.raises(UsageError, match="true or false"):
        parse("zero:offload=2")
