"""Recomputation: any plan with activations computed again in the backward instead of kept (Chen et al. 2016)."""

from typing import Any

from superscaler.errors import UsageError
from superscaler.ir.argument import shown
from superscaler.plans.planner import Planner, PlanScript


def recompute(plan: PlanScript | None = None, ops: str = "all") -> PlanScript:
    """``plan`` with the forward ops of modules matching the glob ``ops`` run again in the backward.

    "all": everything but what passes from one layer to the next.
    """

    if plan is not None and not callable(plan):
        raise UsageError(f"recompute goes around a plan, not {shown(plan)}", hint="recompute(megatron(tensor=2))")

    def recomputing(p: Planner) -> Any:
        said: Any = plan(p) if plan is not None else None  # nothing, of a plan
        p.recompute(ops)
        return said

    return recomputing
