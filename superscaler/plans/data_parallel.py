"""Data parallelism: the batch split over devices, gradients summed."""

from superscaler.plans.planner import Planner, PlanScript


def data_parallel(ways: int = 1, microbatches: int = 1) -> PlanScript:
    """Split the batch ``ways`` ways; every device holds all parameters. Uneven batches stay exact."""

    def plan(p: Planner) -> None:
        p.split_batch(ways, axis="data")
        p.microbatches(microbatches)
        p.assign(p.whole, range(ways), axes=("data",))

    return plan
