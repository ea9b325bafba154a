"""Launching: what does not fit is named, state comes from where it should, and a job that ended says so."""

from __future__ import annotations

import msgspec
import pytest
import small_plans as plans
import torch
from torch import nn

from superscaler.errors import InputError, PlanError, RunError, UsageError
from superscaler.runtime.launch import launch


def test_another_model_is_told_by_name() -> None:
    class Wider(plans.Reference):
        def __init__(self) -> None:
            super().__init__()
            self.w1 = nn.Parameter(torch.zeros(plans.I, plans.H + 1))

    class More(plans.Reference):
        def __init__(self) -> None:
            super().__init__()
            self.w3 = nn.Parameter(torch.zeros(1))

    for model, message in (
        (nn.Linear(2, 2), "Linear has no 'w1', which the plan has"),
        (Wider(), r"'w1' has shape \(4, 7\) in Wider and \(4, 6\) in the plan"),
        (More(), "has a parameter 'w3', which the plan has not"),
        (plans.Reference().to("meta"), "'w1' is on the meta device"),
    ):
        with pytest.raises(PlanError, match=message):
            launch(plans.whole(), model, backend="inline")


def test_weights_by_name_on_top_of_a_model() -> None:
    w2 = torch.zeros(plans.H, plans.O, dtype=torch.float64)
    with launch(plans.tensor_parallel(), plans.Reference(), weights={"w2": w2}, backend="inline") as job:
        assert job.step(plans.batch()) == 0.0
    with pytest.raises(PlanError, match="weights has no 'w1'"):
        launch(plans.whole(), weights={"w2": w2}, backend="inline")
    with pytest.raises(PlanError, match="weights have 'w4', which the plan has not"):
        launch(plans.whole(), plans.Reference(), weights={"w2": w2, "w4": w2}, backend="inline")


def test_drawn_weights_do_not_depend_on_the_split() -> None:
    found = []
    for plan in (plans.whole(), plans.tensor_parallel(), plans.pipelined()):
        with launch(plan, init_seed=3, backend="inline") as job:
            found.append(job.state_dict())
    assert all(torch.equal(found[0][n], other[n]) for other in found[1:] for n in found[0])
    assert found[0]["w1"].std() > 0.01
    with launch(plans.whole(), init_seed=4, backend="inline") as job:
        assert not torch.equal(job.state_dict()["w1"], found[0]["w1"])


def test_nothing_to_start_from() -> None:
    with pytest.raises(UsageError, match="'w1' has no initial content"):
        launch(plans.whole(), backend="inline")
    plan = plans.whole()
    state = tuple(msgspec.structs.replace(t, kind="buffer") if t.name == "b1" else t for t in plan.state)
    with pytest.raises(UsageError, match="buffer 'b1' cannot be drawn"):
        launch(msgspec.structs.replace(plan, state=state), init_seed=0, backend="inline")


def test_unknown_backend() -> None:
    with pytest.raises(UsageError, match="unknown backend 'inlin'") as caught:
        launch(plans.whole(), plans.Reference(), backend="inlin")  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean 'inline'?"


def test_wrong_inputs_end_nothing() -> None:
    with launch(plans.whole(), plans.Reference(), backend="inline") as job:
        with pytest.raises(InputError, match="shape"):
            job.step(plans.batch()[:3])
        assert job.step(plans.batch()) == pytest.approx(plans.Reference().steps(1)[0], rel=1e-9)


@pytest.mark.parametrize("lr", ["fast", float("nan"), float("inf"), -0.1, torch.ones(2)])
def test_a_learning_rate_is_one_finite_number(lr: object) -> None:
    with launch(plans.whole(), plans.Reference(), backend="inline") as job:
        with pytest.raises(InputError, match="lr is"):
            job.step(plans.batch(), lr=lr)  # type: ignore[arg-type]
        assert job.steps == 0
        assert not job.closed


def test_questions_that_have_no_answer() -> None:
    with launch(plans.whole(), plans.Reference(), backend="inline") as job:
        with pytest.raises(UsageError, match="no gradients"):
            job.gradients()
        with pytest.raises(UsageError, match="no entry 'eval'"):
            job.evaluate(plans.batch())
    with pytest.raises(RunError, match="the job has ended"):
        job.step(plans.batch())
    job.close()  # twice does no harm
