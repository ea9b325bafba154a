"""Dynamic axial parallelism (FastFold, Cheng et al. 2022): each attention split along the axis that it does not mix."""

from superscaler.errors import PlanError
from superscaler.plans.planner import Planner, PlanScript


def dap(ways: int = 2, data: int = 1) -> PlanScript:
    """Rows and columns of alignment and pairs over ``ways`` devices, exchanged by all-to-all; batch over ``data``."""

    def plan(p: Planner) -> None:
        p.split_batch(data, axis="data")
        p.axis("dap", ways)
        (devices,) = p.cluster.take(data * ways, 1)
        p.assign(p.whole, devices, axes=("data", "dap"))
        pieces = [op for op in p.find() if len(p.shape(op)) >= 4 and p.shape(op)[0] == p.batch]
        shortest = min((min(p.shape(op)[1:3]) for op in pieces if op.function == "layer_norm"), default=0)
        if shortest < ways:
            raise PlanError(
                f"dap: {ways} ways, but rows or columns of only {shortest}" if shortest else "dap: no rows and columns",
                "it splits layers that work on [batch, rows, columns, …]",
                hint=f"dap:ways={shortest}" if shortest else "megatron(...), or a model such as alphafold2",
            )
        for column, dim in (("column", 2), ("ending", 2), ("", 1)):
            for op in pieces:
                if column in op.module:
                    p.prefer_output(op, dim, ways, axis="dap")

    return plan
