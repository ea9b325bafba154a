"""Measuring: everything that a plan runs is measured, under the keys by which it is looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import superscaler as ss
from superscaler.api import known_profile, profile
from superscaler.errors import ProfileError
from superscaler.models import build
from superscaler.runtime.crowd import Crowd, measure_crowd
from superscaler.runtime.execution import Execution
from superscaler.runtime.links import measure_link
from superscaler.runtime.moves import collectives
from superscaler.runtime.profile import measure, measure_blocks
from superscaler.runtime.rehearsal import Rehearsal
from superscaler.runtime.worker import WorkerOptions
from superscaler.scheduler.cost import VIEWS
from superscaler.scheduler.keys import Keys, op_key
from superscaler.scheduler.machine import this_machine


def plan(script: str, devices: int) -> ss.Plan:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny", layers=2, hidden=16, heads=2)
    return ss.compile(model, example(4, 8), cluster=ss.Cluster.local(devices), plan=script, optimizer=ss.AdamW())


def test_every_op_and_task_body_of_a_plan_is_measured() -> None:
    found = plan("megatron:tensor=2,pipeline=2,microbatches=2", 4)
    measured = measure(found, repeats=1, links=False)
    assert measured.machine == this_machine(4)
    for entry in found.entries.values():
        for program in entry.programs:
            keys = Keys(found, entry, program)
            computing = [i for i in program.order if program.blocks[i.block].lane == "compute"]
            assert {keys.block(i.block, i.microbatch) for i in computing} <= set(measured.blocks)
    graph = found.entries["train"].graph
    whole = [op for op in graph.ops if op.target == "superscaler.clip_coefficient" or op.name == "optimizer/clip"]
    assert all(op_key(op, graph, (), found.space) in measured.ops for op in whole)
    assert not any(key.startswith(tuple(VIEWS)) for key in measured.ops)
    assert all(seconds > 0 for seconds in (*measured.ops.values(), *measured.blocks.values()))
    assert set(measured.device.flops) >= {"float32", "float64", "bfloat16"}
    assert ss.simulate(found, profile=measured).makespan > 0


@pytest.mark.parametrize("script", ["megatron:tensor=2,pipeline=2,microbatches=2", "data_parallel:ways=4"])
@pytest.mark.parametrize("faster", [0.5, 1.0, 3.0])
def test_task_bodies_are_as_long_as_beside_each_other(script: str, faster: float) -> None:
    """Measured when the machine was faster or slower, they take together what the crew's first role took alone, and
    each as much of it as it did; so do those that only other roles have."""
    found = plan(script, 4)
    entry = found.entries["train"]
    each = [Keys(found, entry, p) for p in entry.programs]
    met = [[keys.block(i.block, i.microbatch) for i in keys.program.order
            if keys.program.blocks[i.block].lane == "compute"] for keys in each]  # fmt: skip
    then = {key: 1e-3 * (2 + number) for number, key in enumerate(sorted({key for role in met for key in role}))}
    alone = sum(then[key] for key in met[0]) / faster
    now = Crowd({}, 0.0, {1: 1.0, 4: 2.0}, alone).leveled(found, then)
    assert sum(now[key] for key in met[0]) == pytest.approx(alone)
    assert now == pytest.approx({key: seconds / faster for key, seconds in then.items()})


def test_measurements_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path))
    with pytest.raises(ProfileError, match="cannot read the profile"):
        known_profile(2)
    measured = profile(plan("data_parallel:ways=2", 2), repeats=1, links=False)
    assert known_profile(2) == measured
    again = profile(plan("data_parallel:ways=2,microbatches=2", 2), repeats=1, links=False)
    assert set(measured.ops) < set(again.ops)


def test_what_coming_to_a_communication_takes() -> None:
    """It is counted where something is posted between tasks, and only there."""
    assert measure_blocks(plan("data_parallel:ways=1", 1), WorkerOptions(), repeats=2).posting == 0.0
    assert 0 < measure_blocks(plan("pipeline:stages=2,microbatches=2", 2), WorkerOptions(), repeats=2).posting < 0.01


@pytest.mark.parametrize(
    ("seconds", "repeats", "runs"),
    [(0.125, 20, 20), (0.0625, 1, 9), (1.0, 20, 6), (8.0, 20, 5), (8.0, 1, 1), (0.125, 300, 75), (0.0078125, 300, 300)],
)
def test_task_bodies_run_often_and_for_long_unless_they_are_long(
    seconds: float, repeats: int, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as asked, for half a second at least; a quarter of it is enough after six seconds."""
    found = plan("data_parallel:ways=1", 1)
    ran: list[Execution] = []
    run = Rehearsal.run

    def slow(self: Rehearsal, executions: Iterable[Execution]) -> None:
        entries = list(executions)
        ran.extend(entries)
        run(self, entries)

    monkeypatch.setattr(Rehearsal, "run", slow)
    monkeypatch.setattr("superscaler.runtime.profile.perf_counter", lambda: seconds * len(ran))
    measure_blocks(found, WorkerOptions(), repeats)
    assert max(Counter(map(id, ran)).values()) == 2 + runs  # that of the worker's start and the first do not count


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 5])
def test_the_link_between_workers(workers: int) -> None:
    found = measure_link("cpu", workers)
    assert found.bandwidth > 1e6
    assert 0 <= found.latency < 1


@pytest.mark.slow
def test_workers_together() -> None:
    """Every collective of a plan is measured, and what it costs that others compute at the same time."""
    found = plan("megatron:tensor=2", 2)
    together = measure_crowd(found)
    assert set(together.slowdown) == {1, 2}
    assert together.slowdown[1] == 1.0 <= together.slowdown[2]
    assert set(together.moves) == collectives(found)
    assert any(key.startswith("reduce_scatter 2 ") for key in together.moves)
    assert all(seconds > 0 for seconds in together.moves.values())
