"""The steady state of a pipeline (its repetend), found exactly: every task once per period on every device.

The start of a task of micro-batch j is ``phase[d] + r + period * (y + j)`` with no overlap of residues r on a device
and memory counted at each forward. One small model, whatever the number of micro-batches (compare Tessel, Lin et al.
2024, whose repetend spans several micro-batches).
"""

from __future__ import annotations

from ortools.sat.python import cp_model

from superscaler.scheduler.cpsat import solver_of
from superscaler.scheduler.flow import BACKWARD, FORWARD, WEIGHT, Flow

Kernel = list[list[int]]
"""The start of each kind and stage for micro-batch 0."""


def find_kernel(
    flow: Flow, period: int, *, effort: float = 2.0, seed: int = 0, time_limit: float | None = None
) -> Kernel | None:
    """A steady state with ``period`` ticks per micro-batch and short lives, or None if none was found."""
    model = _Kernel(flow, period)
    solver = solver_of(effort, seed, time_limit)
    if solver.solve(model.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return [[solver.value(model.at[kind, s]) * flow.tick for s in range(flow.stages)] for kind in range(3)]


class _Kernel:
    def __init__(self, flow: Flow, period: int) -> None:
        self.flow, self.model = flow, cp_model.CpModel()
        self.period = period // flow.tick
        tasks = [(kind, s) for kind in range(3) for s in range(flow.stages)]
        self.size = {(kind, s): flow.duration[kind][s] // flow.tick for kind, s in tasks}
        self.turn = {task: self.model.new_int_var(0, 4 * flow.stages, "") for task in tasks}
        self.residue = {task: self.model.new_int_var(0, self.period - self.size[task], "") for task in tasks}
        delayed = any(flow.into_forward)
        phase = [self.model.new_int_var(0, self.period - 1 if delayed else 0, "") for _ in range(flow.devices)]
        self.at = {
            (kind, s): phase[flow.device[s]] + self.residue[kind, s] + self.period * self.turn[kind, s]
            for kind, s in tasks
        }
        self.model.add(self.turn[FORWARD, 0] == 0)
        for kind, s in tasks:
            for (k, q, _), delay in flow.predecessors((kind, s, 0)):
                self.model.add(self.at[kind, s] >= self.at[k, q] + self.size[k, q] + delay // flow.tick)
        for d in range(flow.devices):
            self.lane(d)
            self.memory(d)
        lives = sum(self.turn[WEIGHT, s] - self.turn[FORWARD, s] for s in range(flow.stages))
        self.model.minimize(self.at[BACKWARD, 0] + lives)

    def lane(self, d: int) -> None:
        self.model.add_no_overlap(
            self.model.new_fixed_size_interval_var(self.residue[kind, s], self.size[kind, s], "")
            for kind in range(3)
            for s in self.flow.stages_of[d]
        )

    def memory(self, d: int) -> None:
        """At each forward: what was taken so far, itself included, less what weight gradients gave back."""
        for s in self.flow.stages_of[d]:
            now = self.residue[FORWARD, s]
            live: list[cp_model.LinearExprT] = []
            for q in self.flow.stages_of[d]:
                taken = 1 if q == s else self.after(now, self.residue[FORWARD, q])
                given = self.after(now, self.residue[WEIGHT, q] + self.size[WEIGHT, q])
                live.append(self.turn[WEIGHT, q] - self.turn[FORWARD, q] + taken - given)
            self.model.add(sum(live) <= self.flow.capacity[d])

    def after(self, a: cp_model.LinearExprT, b: cp_model.LinearExprT) -> cp_model.IntVar:
        """Whether ``a >= b``."""
        later = self.model.new_bool_var("")
        self.model.add(a >= b).only_enforce_if(later)
        self.model.add(a < b).only_enforce_if(~later)
        return later
