"""Recomputation: any plan with activations computed again in the backward instead of kept (Chen et al. 2016)."""

from superscaler.plans.planner import Planner, PlanScript


def recompute(plan: PlanScript | None = None, ops: str = "all") -> PlanScript:
    """``plan`` with the forward ops of modules matching the glob ``ops`` run again in the backward.

    "all": everything but what passes from one layer to the next.
    """

    def recomputing(p: Planner) -> None:
        if plan is not None:
            plan(p)
        p.recompute(ops)

    return recomputing
