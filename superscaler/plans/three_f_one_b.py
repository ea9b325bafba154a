"""3F1B (SuperScaler, §5): recycling, several forwards and one backward per micro-batch, pipelined in steady state."""

from superscaler.errors import PlanError
from superscaler.plans.planner import Planner, PlanScript


def three_f_one_b(stages: int = 2, microbatches: int = 1) -> PlanScript:
    """``stages`` stages of layers; every forward of a micro-batch passes through all, only the last has a gradient."""

    def plan(p: Planner) -> None:
        if p.passes() < 2:
            raise PlanError(
                "three_f_one_b: no layer of the model runs more than once, so there is nothing to recycle",
                hint="pipeline(...); or a model that recycles (alphafold2 with cycles=3)",
            )
        if stages == 1:
            raise PlanError(
                "three_f_one_b: stages=1 leaves nothing to pipeline",
                "the forwards of a micro-batch follow each other on the one device",
                hint="stages=2 or more; or data_parallel(...)",
            )
        cut = p.cut(*p.layer_runs(stages))
        for stage, devices in zip(cut, p.cluster.take(stages, stages), strict=True):
            p.assign(stage, devices)
        p.microbatches(microbatches)
        p.order("3f1b")

    return plan
