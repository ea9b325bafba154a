"""Bodies through torch.compile: the same numbers, compiled when the job starts and never again."""

from __future__ import annotations

from typing import Any

import pytest
import small_plans as plans
from torch._dynamo.utils import counters

from superscaler.runtime.compiling import compiled
from superscaler.runtime.launch import launch

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


def never() -> list[Any]:
    raise AssertionError("this body was to be left alone")


def test_optimizer_steps_are_left_as_they_are() -> None:
    with launch(plans.whole(), plans.Reference(), backend="inline") as job:
        bodies = [body for body, _ in job._crew.workers[0].entries["train"].context.bodies.values()]  # type: ignore[union-attr]
        (optimizer,) = (b for b in bodies if any(line.target == "superscaler.sgd" for line in b.lines))
        assert compiled(optimizer, never) == optimizer.module.forward
        with pytest.raises(AssertionError, match="left alone"):
            compiled(bodies[0], never)
