"""The global gradient norm over stages of which some have no parameters."""

from __future__ import annotations

from tests.exact import assert_exact
from tests.test_exactness import CLIPPED, gpt


def test_a_stage_without_parameters_has_no_term_but_gets_the_sum() -> None:
    model, args = gpt(layers=1)
    plan = assert_exact(model, args, "pipeline:stages=5,microbatches=4", 5, optimizer=CLIPPED)
    holders = {plan.space.mesh(s.layout.mesh).devices for s in plan.state}
    assert {d for devices in holders for d in devices} < set(range(5))
