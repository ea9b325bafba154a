"""The models of every family compute under every plan what they compute in plain torch (DESIGN §6)."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import superscaler as ss
from superscaler.errors import PlanError, SplitError
from tests.exact import Subject
from tests.families import FAMILIES, LARGE, family
from tests.random_plans import RandomPlan, RandomTurns, random_plans

CLIPPED = ss.AdamW(lr=1e-2, clip_norm=1.0)
BATCH = 4
PLANS = [
    ("data_parallel:ways=1", 1),
    ("data_parallel:ways=3", 3),
    ("data_parallel:microbatches=3", 1),
    ("data_parallel:ways=2,microbatches=2", 2),
    ("zero:level=3,data=2,microbatches=2", 2),
    ("pipeline:stages=2,microbatches=4", 2),
    ("pipeline:stages=2,microbatches=2,schedule=solve", 2),
    ("megatron:tensor=2,sequence=false", 2),
    ("megatron:tensor=3", 3),
    ("megatron:tensor=7", 7),
    ("megatron:tensor=2,pipeline=2,microbatches=2", 4),
    ("megatron:data=2,tensor=2,pipeline=2,microbatches=2", 8),
    ("recompute:ops=all+megatron:tensor=2,pipeline=2,microbatches=2", 4),
    ("recompute:ops=all+data_parallel:ways=2", 2),
]
"""Each with the workers it takes. 3 and 7 ways divide nothing here; 7 workers are more than any model has heads."""
SOME = [
    (name, PLANS[(5 * i + 8 * j) % len(PLANS)])
    for i, name in enumerate(FAMILIES)
    for j in range(1 if name in LARGE else 2)
]


@lru_cache(maxsize=len(FAMILIES))
def subject(name: str, batch: int = BATCH) -> Subject:
    case = family(name, batch)
    return Subject(case.model, case.args, case.kwargs, loss=case.loss)


@pytest.mark.parametrize(("name", "plan"), SOME)
def test_exact(name: str, plan: tuple[str, int]) -> None:
    subject(name).assert_exact(*plan, CLIPPED)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_under_every_plan(name: str, plan: tuple[str, int]) -> None:
    subject(name).assert_exact(*plan, CLIPPED)


@pytest.mark.parametrize(("name", "batch", "plan", "devices"), [
    ("bert", 5, "megatron:data=2,tensor=3,microbatches=2", 6),
    ("qwen2", 7, "data_parallel:ways=3,microbatches=2", 3),
    ("t5", 7, "data_parallel:ways=7", 7),
    ("vit", 3, "megatron:tensor=8,microbatches=3", 8),
])  # fmt: skip
def test_sizes_that_nothing_divides(name: str, batch: int, plan: str, devices: int) -> None:
    subject(name, batch).assert_exact(plan, devices, CLIPPED)


def assert_exact_if_legal(name: str, plan: RandomPlan) -> None:
    try:
        subject(name).assert_exact(plan, plan.devices, CLIPPED)
    except (PlanError, SplitError):  # it asked for more parts of a dim than fit beside each other
        assume(False)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["bert", "vit", "qwen2", "gpt2", "mixtral", "t5"]), random_plans(BATCH))
def test_random_plans(name: str, plan: RandomPlan) -> None:
    assert_exact_if_legal(name, plan)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(list(FAMILIES)), random_plans(BATCH))
def test_random_plans_at_length(name: str, plan: RandomPlan) -> None:
    assert_exact_if_legal(name, plan)


@pytest.mark.parametrize("plan", [
    RandomTurns(794, 2, 0.1, 0.1), RandomTurns(492, 3, 0.1, 0.1, stages=2), RandomTurns(2, 2, 1.0, 0.1, microbatches=2),
    RandomTurns(4, 2, 0.3, 0.3),
])  # fmt: skip
def test_random_turns(plan: RandomTurns) -> None:
    """An op run again for one of its results where the others are kept; passes through the stages in turns; what no
    turn can put together; views of what other turns make."""
    subject("t5").assert_exact(plan, plan.stages, CLIPPED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["bert", "vit", "qwen2", "gpt2", "t5"]),
    st.builds(
        RandomTurns, st.integers(0, 2**31), st.integers(2, 3), *[st.sampled_from([0.1, 0.3, 1.0])] * 2,
        *[st.integers(1, 2)] * 2,
    ),
)  # fmt: skip
def test_random_turns_at_length(name: str, plan: RandomTurns) -> None:
    try:
        subject(name).assert_exact(plan, plan.stages, CLIPPED)
    except PlanError:  # what is made in other turns than it is read
        assume(False)
