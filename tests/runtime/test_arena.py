"""A worker's memory: what the plan predicts is what its pool measures, and a budget is never exceeded."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
import small_plans as plans
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler import models
from superscaler.api import compile
from superscaler.errors import InfeasiblePlan, OutOfMemory
from superscaler.ir.cluster import Cluster
from superscaler.runtime import arena
from superscaler.runtime.arena import Cache, WorkerMemory, check_budget, need_of
from superscaler.runtime.launch import launch
from superscaler.runtime.memory import Pool, live_table

CPU = torch.device("cpu")
PAGE = os.sysconf("SC_PAGE_SIZE")


def pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def test_the_arenas_planned_size_is_what_the_pool_measures() -> None:
    torch.manual_seed(0)
    model, example = models.build("gpt", "tiny")
    batch = example(8)
    plan = compile(model, batch, cluster=Cluster.local(4), plan="megatron:tensor=2,pipeline=2,microbatches=2")
    with launch(plan, model, backend="inline") as job:
        before = job.memory()
        job.step(**batch) if isinstance(batch, dict) else job.step(*batch)
        for worker, memory in enumerate(job.memory()):
            need = need_of(plan, worker, CPU)
            assert memory["arena"] <= need.arena < memory["arena"] + arena.ALIGNMENT
            assert memory["mapped"] == memory["most_mapped"] == need.pool
            # The system gives pages as they are written: after a step all of the arena is used, and no more.
            assert before[worker]["physical"] < memory["physical"] <= pages(need.state) + pages(need.arena)
            assert memory["physical"] > need.state + 0.8 * need.arena


def test_the_smallest_budget_is_named_before_anything_runs_and_is_enough() -> None:
    plan = plans.in_arena(plans.whole())
    need = need_of(plan, 0, CPU).total
    with pytest.raises(InfeasiblePlan, match=f"needs {need:,}") as caught:
        launch(plan, plans.Reference(), backend="inline", memory=need - 1)
    said = re.search(rf"memory={need} \(--memory ([\d.]+)\) is the smallest", str(caught.value))
    assert said is not None
    assert need <= int(float(said[1]) * (1 << 30)) < need + 2000, "in the unit of the command line it is enough, too"
    with launch(plan, plans.Reference(), backend="inline", memory=need) as job:
        assert job.step(plans.batch()) == pytest.approx(plans.Reference().steps(1)[0], rel=1e-9)
        (memory,) = job.measure_memory(plans.batch())
        assert memory["mapped"] <= need


@given(st.integers(1, 1 << 20))
@settings(max_examples=20, deadline=None)
def test_a_budget_is_refused_exactly_below_the_need(memory: int) -> None:
    plan = plans.in_arena(plans.whole())
    need = need_of(plan, 0, CPU).total
    if memory >= need:
        check_budget(plan, memory, CPU)
    else:
        with pytest.raises(InfeasiblePlan):
            check_budget(plan, memory, CPU)


def test_the_memory_goes_back_when_the_job_ends() -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with launch(plans.pipelined(), plans.Reference(), backend="inline") as job:
        job.step(plans.batch())
        rows = [row for row in live_table() if row.pid == os.getpid() and row.pool.startswith("worker")]
        assert {(row.pool, row.owner) for row in rows} >= {("worker 0", "state"), ("worker 1", "arena")}
        local = job.local_state()
        whole = job.state_dict()
    assert not [row for row in live_table() if row.pid == os.getpid() and row.pool.startswith("worker")]
    # The table itself stays open, once per process.
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1
    assert torch.equal(local[0]["w1"][0][1], whole["w1"]), "what a job gave out outlives it"


def test_it_goes_back_too_when_the_worker_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superscaler.runtime.worker.Execution", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch(plans.pipelined(), plans.Reference(), backend="inline")
    assert not [row for row in live_table() if row.pid == os.getpid() and row.pool.startswith("worker")]


def test_state_lies_apart_and_aligned() -> None:
    memory = WorkerMemory(plans.in_arena(plans.whole()), 0, CPU)
    try:
        spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in memory.state.values())
        assert all(start % arena.ALIGNMENT == 0 for start, _ in spans)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
    finally:
        memory.close()


@given(st.lists(st.integers(0, 40), max_size=12))
@settings(deadline=None)
def test_a_cache_has_memory_for_the_rows_asked_for_and_keeps_what_is_in_it(rows: list[int]) -> None:
    with Pool("host", budget=1 << 20, chunk=PAGE) as pool:
        cache = Cache(pool, (40, 3, 100), torch.float32)
        written = 0
        for count in rows:
            cache.grow(count)
            view = cache.tensor()
            assert count <= view.shape[0] <= 40
            assert pool.stats().mapped <= pages(max([0, *rows]) * cache.row)
            for row in range(written, count):
                view[row] = row
            written = max(written, count)
            assert all(bool((view[row] == row).all()) for row in range(written))
        cache.trim()
        assert pool.stats().mapped == 0


def test_a_cache_that_outgrows_the_budget_says_so_and_stays_as_it_was() -> None:
    with Pool("host", budget=2 * PAGE, chunk=PAGE) as pool:
        cache = Cache(pool, (10, PAGE // 4), torch.float32)
        cache.grow(2)
        with pytest.raises(OutOfMemory, match="cache"):
            cache.grow(3)
        assert cache.tensor().shape[0] == 2
