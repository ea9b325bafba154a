"""Exact improvement of one stretch of time of a pipeline's schedule, the rest staying as it is.

The tasks that start in ``[since, until)`` are free. What starts earlier is fixed; what starts later keeps its order
and its distances and moves forward as one block, as far as the window can be tightened. A window that reaches to the
end has its own end minimised. The window ``[0, end)`` is the whole problem, so proving it proves the schedule.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from ortools.sat.python import cp_model

from superscaler.scheduler.cpsat import solver_of
from superscaler.scheduler.flow import FORWARD, WEIGHT, Flow, Starts, Task


@dataclass(frozen=True, slots=True)
class Improvement:
    """The schedule (None: nothing shorter), whether the window is proven best, and the deterministic seconds spent."""

    starts: Starts | None
    proven: bool
    effort: float


def improve_window(
    flow: Flow,
    starts: Starts,
    since: int,
    until: int | None,
    *,
    floor: int = 0,
    effort: float = 1.0,
    seed: int = 0,
    time_limit: float | None = None,
) -> Improvement:
    """Shorten ``starts`` within ``[since, until)`` (``None``: to the end), never below the proven bound ``floor``.

    ``effort`` is in deterministic seconds of one CP-SAT worker, ``time_limit`` in wall seconds.
    """
    window = _Window(flow, starts, since, until, floor)
    solver = solver_of(effort, seed, time_limit, workers=1)
    parameters = solver.parameters
    # Presolve and the linear relaxation cost more than these small models take to solve; every other seed climbs from
    # the bound instead of descending from the hint.
    parameters.cp_model_presolve = False
    parameters.linearization_level = 0
    parameters.use_objective_lb_search = seed % 2 == 1
    status = solver.solve(window.model)
    spent = solver.response_proto.deterministic_time
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Improvement(None, False, spent)
    better = window.result(solver)
    shorter = flow.makespan(better) < flow.makespan(starts)
    return Improvement(better if shorter else None, status == cp_model.OPTIMAL, spent)


class _Window:
    """The model: starts of the free tasks in ticks divided by the common divisor, and the gain."""

    def __init__(self, flow: Flow, starts: Starts, since: int, until: int | None, floor: int) -> None:
        self.flow, self.starts, self.scale = flow, starts, flow.tick
        self.total = flow.makespan(starts)
        self.since, self.until = since, self.total if until is None else until
        self.first = [[bisect_left(row, since) for row in kind] for kind in starts]
        self.last = [[bisect_left(row, self.until) for row in kind] for kind in starts]
        self.model = cp_model.CpModel()
        self.free: dict[Task, cp_model.IntVar] = {}
        self.edges_of_devices()
        room = max(0, min(self.slack(), (self.total - floor) // self.scale))
        # By how much everything after the window moves forward; for the last window, by how much it gets shorter.
        self.gain = self.model.new_int_var(0, room, "gain")
        self.model.add_hint(self.gain, 0)
        self.model.maximize(self.gain)
        self.variables()
        self.precedences()
        for d in range(flow.devices):
            self.lane(d)
            self.memory(d)

    def edges_of_devices(self) -> None:
        """For each device the end of what is fixed before the window and the start of what follows it."""
        self.before = [self.since] * self.flow.devices
        self.after = [self.total] * self.flow.devices
        for kind in range(3):
            for s, row in enumerate(self.starts[kind]):
                d, low, high = self.flow.device[s], self.first[kind][s], self.last[kind][s]
                if low:
                    self.before[d] = max(self.before[d], row[low - 1] + self.flow.duration[kind][s])
                if high < len(row):
                    self.after[d] = min(self.after[d], row[high])

    def slack(self) -> int:
        """How far the block after the window could move if the window were empty."""
        slack = min(after - before for before, after in zip(self.before, self.after, strict=True))
        slack = min(slack, self.total - self.since)
        for kind in range(3):
            for s in range(self.flow.stages):
                for j in range(self.last[kind][s], self.flow.microbatches):
                    for (k, q, _), delay in self.flow.predecessors((kind, s, j)):
                        if j < self.first[k][q]:
                            end = self.starts[k][q][j] + self.flow.duration[k][q]
                            slack = min(slack, self.starts[kind][s][j] - end - delay)
        return slack // self.scale

    def variables(self) -> None:
        for kind in range(3):
            for s in range(self.flow.stages):
                d, duration = self.flow.device[s], self.flow.duration[kind][s]
                low, high = self.before[d] // self.scale, (self.after[d] - duration) // self.scale
                for j in range(self.first[kind][s], self.last[kind][s]):
                    start = self.model.new_int_var(low, max(low, high), "")
                    self.model.add_hint(start, self.starts[kind][s][j] // self.scale)
                    self.model.add(start + self.gain <= high)
                    self.free[kind, s, j] = start

    def precedences(self) -> None:
        model, flow, scale = self.model, self.flow, self.scale
        for (kind, s, j), start in self.free.items():
            duration = flow.duration[kind][s]
            for (k, q, i), delay in flow.predecessors((kind, s, j)):
                wait = flow.duration[k][q] + delay
                if (k, q, i) in self.free:
                    model.add(start >= self.free[k, q, i] + wait // scale)
                else:
                    model.add(start >= (self.starts[k][q][i] + wait) // scale)
            for (k, q, i), delay in flow.successors((kind, s, j)):
                if (k, q, i) not in self.free:
                    latest = (self.starts[k][q][i] - duration - delay) // scale
                    model.add(start + self.gain <= latest)
            if (kind, s, j + 1) in self.free:
                model.add(self.free[kind, s, j + 1] >= start + duration // scale)

    def lane(self, d: int) -> None:
        sizes = self.flow.duration
        self.model.add_no_overlap(
            self.model.new_fixed_size_interval_var(start, sizes[kind][s] // self.scale, "")
            for (kind, s, _), start in self.free.items()
            if self.flow.device[s] == d
        )

    def memory(self, d: int) -> None:
        """Activations live from the start of the forward to the end of the weight gradient.

        With one stage on the device they come and go first in first out, which is a matter of precedences.
        """
        if len(self.flow.stages_of[d]) == 1:
            self.fifo_memory(d)
            return
        begin, end = self.since // self.scale, self.total // self.scale + 1
        lives: list[cp_model.IntervalVar] = []
        for s in self.flow.stages_of[d]:
            release = self.flow.duration[WEIGHT][s] // self.scale
            for j in range(self.first[WEIGHT][s], self.last[FORWARD][s]):
                forward, weight = self.free.get((FORWARD, s, j)), self.free.get((WEIGHT, s, j))
                low = begin if forward is None else forward
                high = end if weight is None else weight + release
                at = begin if forward is None else self.starts[FORWARD][s][j] // self.scale
                to = end if weight is None else self.starts[WEIGHT][s][j] // self.scale + release
                size = self.model.new_int_var(0, end - begin, "")
                self.model.add_hint(size, to - at)
                lives.append(self.model.new_interval_var(low, size, high, ""))
        if len(lives) > self.flow.capacity[d]:
            self.model.add_cumulative(lives, [1] * len(lives), self.flow.capacity[d])

    def fifo_memory(self, d: int) -> None:
        (s,), room = self.flow.stages_of[d], self.flow.capacity[d]
        release = self.flow.duration[WEIGHT][s] // self.scale
        for j in range(max(room, self.first[FORWARD][s]), self.last[FORWARD][s]):
            if (weight := self.free.get((WEIGHT, s, j - room))) is not None:
                self.model.add(self.free[FORWARD, s, j] >= weight + release)

    def result(self, solver: cp_model.CpSolver) -> Starts:
        gain = solver.value(self.gain) * self.scale
        moved = [[[t - gain if t >= self.until else t for t in row] for row in kind] for kind in self.starts]
        for (kind, s, j), start in self.free.items():
            moved[kind][s][j] = solver.value(start) * self.scale
        return moved
