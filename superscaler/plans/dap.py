"""Dynamic axial parallelism (FastFold, Cheng et al. 2022): each attention split along the axis that it does not mix."""

from superscaler.plans.planner import Planner, PlanScript


def dap(ways: int = 2, data: int = 1) -> PlanScript:
    """Rows and columns of alignment and pairs over ``ways`` devices, exchanged by all-to-all; batch over ``data``."""

    def plan(p: Planner) -> None:
        p.split_batch(data, axis="data")
        p.axis("dap", ways)
        p.assign(p.whole, range(data * ways), axes=("data", "dap"))
        for column, dim in (("column", 2), ("ending", 2), ("", 1)):
            for op in p.find():
                if len(p.shape(op)) >= 4 and p.shape(op)[0] == p.batch and column in op.module:
                    p.prefer_output(op, dim, ways, axis="dap")

    return plan
