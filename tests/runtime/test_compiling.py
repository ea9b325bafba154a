"""Bodies through torch.compile: the same numbers, compiled when the job starts and never again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_plans as plans
import torch
from torch._dynamo.utils import counters

from superscaler.api import compile as compile_plan
from superscaler.ir.cluster import Cluster
from superscaler.models.gpt import GPT, PRESETS
from superscaler.runtime.compiling import compiled
from superscaler.runtime.launch import launch
from superscaler.transforms.optimize import SGD

pytestmark = pytest.mark.slow


def test_steps_equal_plain_torch_and_compile_nothing() -> None:
    reference = plans.Reference()
    expected = reference.steps(3)
    with launch(plans.pipelined(), plans.Reference(), backend="inline", compile=True) as job:
        before = dict(counters["stats"])
        assert before["unique_graphs"] > 0
        assert [job.step(plans.batch()) for _ in range(3)] == pytest.approx(expected, rel=1e-9)
        assert dict(counters["stats"]) == before
        for name, gradient in job.gradients().items():
            assert plans.close(gradient, reference.get_parameter(name).grad)


def test_what_sleeps_is_left_as_it_is() -> None:
    with launch(plans.pipelined(slow=1.0), plans.Reference(), backend="inline", compile=True) as job:
        assert job.step(plans.batch()) == pytest.approx(plans.Reference().steps(1)[0], rel=1e-9)
        times = [t for t in job.trace() if t.worker == 1 and t.kind == "forward"]
        assert all(t.end - t.start >= 1000 for t in times)


def test_optimizer_steps_are_left_as_they_are() -> None:
    with launch(plans.whole(), plans.Reference(), backend="inline") as job:
        bodies = [*job._crew.workers[0].entries["train"].context.used.values()]  # type: ignore[union-attr]
        (optimizer,) = (b for b in bodies if any(line.target == "superscaler.sgd" for line in b.lines))
        assert compiled(optimizer) == optimizer.module.forward
        assert compiled(bodies[0]) != bodies[0].module.forward


def test_dropout_draws_the_same_numbers_and_nothing_is_compiled_again() -> None:
    torch.manual_seed(0)
    model = GPT(replace(PRESETS["tiny"], dropout=0.1))
    batch = torch.randint(0, 256, (4, 32)), torch.randint(0, 256, (4, 32))
    plan = compile_plan(
        model, batch, cluster=Cluster.local(2), plan="megatron:tensor=2,microbatches=2", optimizer=SGD(lr=0.1),
        evaluate=False,
    )  # fmt: skip
    with launch(plan, model, backend="inline") as job:
        expected = [job.step(*batch) for _ in range(3)]
    with launch(plan, model, backend="inline", compile=True) as job:
        before = dict(counters["stats"])
        assert [job.step(*batch) for _ in range(3)] == pytest.approx(expected, rel=1e-5)
        assert dict(counters["stats"]) == before
