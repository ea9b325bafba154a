"""Modules and plans drawn at random: whatever the module, any legal plan of it is exact (DESIGN §6)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import superscaler as ss
from superscaler.errors import PlanError, SplitError
from tests.cases import slow
from tests.exact import Subject
from tests.random_modules import LOSSES, STEPS, WHOLE_BATCH, Drawn, drawn_modules
from tests.random_plans import RandomPlan, random_plans

SGD = ss.SGD(lr=0.05)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Drawn, RandomPlan]:
    module = draw(drawn_modules())
    whole = bool(set(module.losses) & set(WHOLE_BATCH))
    return module, draw(random_plans(module.batch, micro=not whole))


def assert_exact_if_legal(case: tuple[Drawn, RandomPlan]) -> None:
    module, plan = case
    subject = Subject(module.module(), module.inputs())
    gradients = subject.expected(SGD).gradients.values()
    assume(torch.stack([g.norm() for g in gradients]).norm() > 0.1)  # else there is little but rounding
    try:
        subject.assert_exact(plan, plan.devices, SGD)
    except (PlanError, SplitError):  # it asked for more parts of a dim than fit beside each other
        assume(False)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_random_modules(case: tuple[Drawn, RandomPlan]) -> None:
    assert_exact_if_legal(case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_random_modules_at_length(case: tuple[Drawn, RandomPlan]) -> None:
    assert_exact_if_legal(case)


@pytest.mark.parametrize("step", [slow(s) if n % 2 else s for n, s in enumerate(sorted(STEPS))])
def test_every_step_is_exact_with_all_axes(step: str) -> None:
    steps = (("residual", 0), (step, 0), (step, 1))
    subject = Subject(Drawn(steps, ("square",)).module(), Drawn(steps, ("square",)).inputs())
    subject.assert_exact(RandomPlan(seed=1, data=2, one=2, two=2, microbatches=2, share=0.7, again=0.3), 8, SGD)


@pytest.mark.parametrize("loss", sorted(WHOLE_BATCH))
def test_losses_of_the_whole_batch_are_exact_in_data_parallel_and_refused_in_micro_batches(loss: str) -> None:
    drawn = Drawn((("residual", 0),), (loss,))
    subject = Subject(drawn.module(), drawn.inputs())
    subject.assert_exact("data_parallel:ways=3", 3, SGD)
    with pytest.raises(PlanError, match="cannot be micro-batched") as refused:
        subject.compile("data_parallel:microbatches=2", 1, SGD)
    assert "random_modules.py" in str(refused.value)


def test_every_loss_is_among_those_drawn() -> None:
    assert set(WHOLE_BATCH) < set(LOSSES)
