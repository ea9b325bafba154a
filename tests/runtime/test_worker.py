"""A worker runs its Program: what comes out is what plain torch computes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import small_plans as plans
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import UsageError, WorkerError
from superscaler.ir.plan import Plan
from superscaler.runtime.launch import launch

PLANS: dict[str, Callable[[], Plan]] = {
    "one worker": plans.whole,
    "tensor parallel": plans.tensor_parallel,
    "tensor parallel, uneven": lambda: plans.tensor_parallel(sizes=(4, 2)),
    "tensor parallel, more devices": lambda: plans.tensor_parallel(ways=4),
    "pipeline": plans.pipelined,
    "pipeline, uneven": lambda: plans.pipelined(3, (4, 3, 1)),
}


@pytest.mark.parametrize("arena", [False, True], ids=["held", "arena"])
@pytest.mark.parametrize("name", PLANS)
def test_losses_gradients_and_parameters_equal_torch(name: str, arena: bool) -> None:
    plan = plans.in_arena(PLANS[name]()) if arena else PLANS[name]()
    reference = plans.Reference()
    expected = reference.steps(3)
    with launch(plan, plans.Reference(), backend="inline") as job:
        losses = [job.step(plans.batch()) for _ in range(3)]
        assert losses == pytest.approx(expected, rel=1e-9)
        for parameter, gradient in job.gradients().items():
            assert plans.close(gradient, reference.get_parameter(parameter).grad)
        for parameter, value in job.state_dict().items():
            assert plans.close(value, reference.get_parameter(parameter).detach())


@given(st.integers(1, 8), st.data())
@settings(max_examples=15, deadline=None)
def test_any_uneven_micro_batches(microbatches: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, plans.B - 1), min_size=microbatches - 1, max_size=microbatches - 1)))
    sizes = tuple(b - a for a, b in zip([0, *cuts], [*cuts, plans.B], strict=True))
    if microbatches == 1:
        return
    with launch(plans.pipelined(microbatches, sizes), plans.Reference(), backend="inline") as job:
        assert job.step(plans.batch()) == pytest.approx(plans.Reference().steps(1)[0], rel=1e-9)


def test_the_model_is_never_touched_and_the_learning_rate_can_be_given() -> None:
    model, reference = plans.Reference(), plans.Reference()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with launch(plans.whole(), model, backend="inline") as job:
        job.step(plans.batch(), lr=0.01)
        reference.steps(1, lr=0.01)
        assert plans.close(job.state_dict()["w1"], reference.get_parameter("w1").detach())
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_sharded_forms_stand_beside_the_whole_ones() -> None:
    with launch(plans.tensor_parallel(), plans.Reference(), backend="inline") as job:
        job.step(plans.batch())
        local, whole = job.local_state(), job.state_dict()
        for worker, parts in enumerate(local):
            ((region, part),) = parts["w1"]
            assert region[1] == ((3 * worker, 3 * worker + 3),)
            assert torch.equal(part, whole["w1"][:, 3 * worker : 3 * worker + 3])
        assert [p["w2"][0][1].shape for p in job.local_gradients()] == [(3, plans.O), (3, plans.O)]


def test_values_of_a_block_are_dropped_after_their_last_use_and_the_code_can_be_read() -> None:
    with launch(plans.pipelined(), plans.Reference(), backend="inline") as job:
        execution = job._crew.workers[0].entries["train"]  # type: ignore[union-attr]
        source = next(c.source for c in execution.codes if c.block.kind == "backward")
        assert source.startswith('def backward_3(r, j, b, seed):\n    """backward"""\n    v')
        assert "; v9 = None" in source
        bodies = [body.module.code for body in execution.context.used.values()]
        assert any("torch.addmm(" in code for code in bodies)


def test_equal_micro_batches_share_one_body() -> None:
    with launch(plans.pipelined(8), plans.Reference(), backend="inline") as job:
        assert len(job._crew.workers[1].entries["train"].context.used) == 2  # type: ignore[union-attr]


def test_sums_over_micro_batches_are_formed_where_they_are_kept() -> None:
    with launch(plans.in_arena(plans.pipelined()), plans.Reference(), backend="inline") as job:
        execution = job._crew.workers[0].entries["train"]  # type: ignore[union-attr]
        code = next(c for c in execution.codes if c.block.kind == "backward")
        assert "v" not in code.source.partition('"""backward"""')[2]  # no local is left
        bodies = [body for body in execution.context.used.values() if "mm" in body.module.code]
        first, later = (b.module.code for b in bodies if "threshold_backward" in b.module.code)
        assert "out = out" in first
        assert ".addmm_(" in later
        assert ".add_(" in later


def test_an_op_that_fails_names_worker_and_task() -> None:
    with launch(plans.pipelined(), plans.Reference(), backend="inline") as job:
        job._crew.workers[1].state["w2"].resize_(2, 2)  # type: ignore[union-attr]
        with pytest.raises(WorkerError, match="worker 1 failed in forward, micro-batch 0"):
            job.step(plans.batch())


def test_memory_is_what_is_held_and_what_a_run_needs_beside_it() -> None:
    with launch(plans.in_arena(plans.whole()), plans.Reference(), backend="inline") as job:
        (before,) = job.memory()
        assert before["state"] == 8 * sum(t.numel() for t in plans.weights().values())
        assert before["arena"] >= 8 * 2 * plans.B * plans.H
        assert "workspace" not in before
        (after,) = job.measure_memory(plans.batch())
        assert after["workspace"] >= 8 * 2 * plans.B * plans.O  # at least the output and its gradient
        assert after["peak"] == after["state"] + after["arena"] + after["workspace"]
        assert job.steps == 1
    with (
        launch(plans.pipelined(), plans.Reference(), backend="inline") as job,
        pytest.raises(UsageError, match="apart"),
    ):
        job.measure_memory(plans.batch())


def test_trace_has_every_task_in_order() -> None:
    plan = plans.pipelined()
    with launch(plan, plans.Reference(), backend="inline") as job:
        assert job.trace() == []
        job.step(plans.batch())
        trace = job.trace()
        assert len(trace) == sum(len(p.order) for p in plan.entries["train"].programs)
        assert all(t.start <= t.end for t in trace)
        assert min(t.start for t in trace) == 0
        compute = [t for t in trace if t.worker == 0 and t.lane == "compute"]
        assert all(a.end <= b.start for a, b in pairwise(compute))
        timings = job.timings()
        assert len(timings.steps) == 1
        assert 0 < max(timings.busy) <= timings.run <= timings.median
