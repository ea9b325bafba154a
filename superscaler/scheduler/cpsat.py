"""The exact solver: CP-SAT over start times, never called cold.

It gets start windows from heads and tails, a proven lower bound, the best known schedule as hint and upper bound,
first-in-first-out order where micro-batches are interchangeable, and all times divided by their common divisor.
Limits are deterministic: the same seed gives the same schedule under any load. The wall clock is only a fuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from time import monotonic

from ortools.sat.python import cp_model

from superscaler.scheduler.bounds import heads_and_tails
from superscaler.scheduler.problem import Problem, jobs_by_lane, makespan
from superscaler.scheduler.symmetry import interchangeable

_SEEDS = 2**31
"""How many seeds CP-SAT tells apart; any integer is taken as one of them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found: ``starts`` (None: nothing), a proven lower ``bound``, and why it stopped."""

    starts: tuple[int, ...] | None
    bound: int
    infeasible: bool = False
    fused: bool = False


def search(
    problem: Problem,
    *,
    lower: int = 0,
    upper: int | None = None,
    hint: Sequence[int] | None = None,
    effort: float = 5.0,
    seed: int = 0,
    time_limit: float | None = None,
) -> Outcome:
    """Minimise the makespan within ``[lower, upper]`` ticks.

    ``effort`` is in deterministic seconds of CP-SAT, ``time_limit`` in wall seconds. With ``upper`` given, infeasible
    means that no schedule is that short.
    """
    began = monotonic()
    model = _Model(problem, lower, upper, hint)
    left = None if time_limit is None else time_limit - (monotonic() - began)
    solver = solver_of(effort, seed, left)
    status = solver.solve(model.model)
    if status == cp_model.INFEASIBLE:
        return Outcome(None, lower, infeasible=True)
    bound = max(lower, round(solver.best_objective_bound) * model.scale)
    spent = solver.response_proto.deterministic_time
    fused = left is not None and status != cp_model.OPTIMAL and spent < 0.9 * effort
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Outcome(None, bound, fused=fused)
    starts = tuple(solver.value(start) * model.scale for start in model.starts)
    return Outcome(starts, makespan(problem, starts) if status == cp_model.OPTIMAL else bound, fused=fused)


def first(problem: Problem, *, effort: float, seed: int = 0, time_limit: float | None = None) -> Outcome:
    """Any schedule within memory, however long: what is found first."""
    model = _Model(problem, 0, None, None)
    model.model.clear_objective()
    solver = solver_of(effort, seed, time_limit)
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Outcome(None, 0, infeasible=status == cp_model.INFEASIBLE)
    return Outcome(tuple(solver.value(start) * model.scale for start in model.starts), 0)


def solver_of(effort: float, seed: int, time_limit: float | None, *, workers: int = 2) -> cp_model.CpSolver:
    """A solver whose workers take turns deterministically, with a deterministic limit and the wall-clock fuse."""
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = workers
    parameters.interleave_search = workers > 1
    parameters.random_seed = seed % _SEEDS
    parameters.max_deterministic_time = effort
    if time_limit is not None:
        parameters.max_time_in_seconds = max(time_limit, 0.01)
    return solver


class _Model:
    """The constraint model of one problem, in ticks divided by ``scale``."""

    def __init__(self, problem: Problem, lower: int, upper: int | None, hint: Sequence[int] | None) -> None:
        self.problem = problem
        self.scale = _common_divisor(problem)
        self.durations = [job.duration // self.scale for job in problem.jobs]
        horizon = self._horizon() if upper is None else upper // self.scale
        self.model = cp_model.CpModel()
        self.end = self.model.new_int_var(min(-(-lower // self.scale), horizon), horizon, "makespan")
        self.groups = interchangeable(problem)
        heads, tails = heads_and_tails(problem)
        self.starts: list[cp_model.IntVar] = []
        for index, duration in enumerate(self.durations):
            first, last = heads[index] // self.scale, horizon - tails[index] // self.scale - duration
            # An empty window must reach the solver as infeasibility, not as an error.
            self.starts.append(self.model.new_int_var(first, max(first, last), f"s{index}"))
            self.model.add(self.starts[index] + duration + tails[index] // self.scale <= self.end)
        self._precedences()
        self._lanes()
        for device, capacity in enumerate(problem.capacity):
            if capacity is not None:
                self._memory(device, capacity)
        if hint is not None:
            for start, value in zip(self.starts, hint, strict=True):
                self.model.add_hint(start, value // self.scale)
            self.model.add_hint(self.end, makespan(problem, hint) // self.scale)
        self.model.minimize(self.end)

    def _horizon(self) -> int:
        return sum(self.durations) + sum(delay for _, _, delay in self.problem.edges) // self.scale

    def _precedences(self) -> None:
        for before, after, delay in self.problem.edges:
            ready = self.starts[before] + self.durations[before] + delay // self.scale
            self.model.add(self.starts[after] >= ready)
        for group in self.groups:
            for a, b in pairwise(group):
                step = self.durations[a] if self.problem.jobs[a].lanes else 0
                self.model.add(self.starts[b] >= self.starts[a] + step)

    def _lanes(self) -> None:
        for members in jobs_by_lane(self.problem).values():
            self.model.add_no_overlap(
                self.model.new_fixed_size_interval_var(self.starts[i], self.durations[i], f"i{i}") for i in members
            )

    def _memory(self, device: int, capacity: int) -> None:
        """First in first out with one taker: linear precedences. Otherwise a reservoir."""
        jobs = self.problem.jobs
        takers = [i for i, job in enumerate(jobs) if job.device == device and job.acquire]
        givers = [i for i, job in enumerate(jobs) if job.device == device and job.release]
        if not takers:
            return
        if takers in self.groups and givers in self.groups and jobs[takers[0]].acquire == jobs[givers[0]].release:
            room = capacity // jobs[takers[0]].acquire
            for giver, taker in zip(givers, takers[room:], strict=False):
                self.model.add(self.starts[taker] >= self.starts[giver] + self.durations[giver])
            return
        times = [self.starts[i] for i in takers] + [self.starts[i] + self.durations[i] for i in givers]
        changes = [jobs[i].acquire for i in takers] + [-jobs[i].release for i in givers]
        self.model.add_reservoir_constraint(times, changes, min(0, sum(changes)), capacity)


def _common_divisor(problem: Problem) -> int:
    return gcd(*(job.duration for job in problem.jobs), *(delay for _, _, delay in problem.edges)) or 1
