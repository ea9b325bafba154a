"""Lower bounds of a pipeline by an exact solution of part of it: some devices as they are, the others without limit.

Tasks of the chosen devices do not overlap; every task keeps its dependencies, its order within its stage and, where a
device holds one stage, its memory. Every schedule of the pipeline is one of this, so no bound exceeds a feasible one.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from ortools.sat.python import cp_model

from superscaler.scheduler.cpsat import solver_of
from superscaler.scheduler.flow import FORWARD, WEIGHT, Flow, Task


def relaxed_bound(
    flow: Flow,
    devices: Collection[int],
    floor: int,
    ceiling: int,
    *,
    effort: float = 3.0,
    seed: int = 0,
    time_limit: float | None = None,
) -> int:
    """The best proven lower bound, from ``floor`` (known already) to ``ceiling`` (the makespan of a schedule)."""
    model = _Relaxation(flow, devices, floor, ceiling)
    solver = solver_of(effort, seed, time_limit)
    status = solver.solve(model.model)
    if status == cp_model.MODEL_INVALID or status == cp_model.INFEASIBLE:
        return floor
    return max(floor, min(ceiling, round(solver.best_objective_bound) * flow.tick))


class _Relaxation:
    def __init__(self, flow: Flow, devices: Collection[int], floor: int, ceiling: int) -> None:
        self.flow, self.model = flow, cp_model.CpModel()
        horizon = ceiling // flow.tick
        self.end = self.model.new_int_var(-(-floor // flow.tick), horizon, "")
        self.at: dict[Task, cp_model.IntVar] = {}
        for kind in range(3):
            for s in range(flow.stages):
                for j in range(flow.microbatches):
                    self.at[kind, s, j] = self.model.new_int_var(0, horizon, "")
        self.precedences()
        for d in devices:
            self.model.add_no_overlap(
                self.model.new_fixed_size_interval_var(self.at[kind, s, j], self.size(kind, s), "")
                for kind, s, j in self.at
                if flow.device[s] == d
            )
        for mine, room in zip(flow.stages_of, flow.capacity, strict=True):
            if len(mine) == 1:
                self.memory(mine[0], room)
        self.model.minimize(self.end)

    def size(self, kind: int, s: int) -> int:
        return self.flow.duration[kind][s] // self.flow.tick

    def precedences(self) -> None:
        flow, model = self.flow, self.model
        for (kind, s, j), start in self.at.items():
            for before, delay in flow.predecessors((kind, s, j)):
                model.add(start >= self.at[before] + self.size(before[0], before[1]) + delay // flow.tick)
        for kind in range(3):
            for s in range(flow.stages):
                for i, j in pairwise(range(flow.microbatches)):
                    model.add(self.at[kind, s, j] >= self.at[kind, s, i] + self.size(kind, s))
        for s in range(flow.stages):
            model.add(self.end >= self.at[WEIGHT, s, flow.microbatches - 1] + self.size(WEIGHT, s))

    def memory(self, s: int, room: int) -> None:
        for j in range(room, self.flow.microbatches):
            self.model.add(self.at[FORWARD, s, j] >= self.at[WEIGHT, s, j - room] + self.size(WEIGHT, s))
