"""Pipelines whose sends are so long that they can meet on their lane: communication has to be scheduled as well.

The same pipeline with communication as a delay is a relaxation, so its bound holds; its order of tasks is a candidate,
and so are those of the greedy family under longer delays, which leave sends time to wait for their lane. Each becomes
a schedule of tasks and sends by list scheduling; small problems then go to the exact solver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from superscaler.scheduler.bounds import Bound
from superscaler.scheduler.flow import Flow, Starts
from superscaler.scheduler.greedy import greedy, policies, tuning
from superscaler.scheduler.greedy_back import greedy_back
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.named_starts import named_starts
from superscaler.scheduler.pipeline import COMPUTE
from superscaler.scheduler.polish import Budget
from superscaler.scheduler.problem import Problem, Timetable, jobs_by_lane, makespan
from superscaler.scheduler.solve import solve

_DELAYS = (1.0, 1.5, 2.0)
"""A send waits for at most one other where forwards and backwards go by turns."""
_VISITS = 60_000
"""Jobs that list scheduling may visit: a third of a second."""
_EXACT_JOBS = 1500


def with_sends(problem: Problem, flow: Flow, starts: Starts, bound: Bound, budget: Budget) -> Timetable:
    """The best schedule of ``problem``, which has ``flow``'s tasks first and then its sends.

    ``starts`` are those of ``flow`` with communication as a delay, ``bound`` is a bound of it.
    """
    known: dict[str, tuple[int, ...]] = {}
    for name, candidate in _candidates(flow, starts, len(problem.jobs), budget):
        known[name] = list_schedule(problem, _turns(problem, candidate))
        if makespan(problem, known[name]) == bound.value or budget.blown:
            break
    name = min(known, key=lambda each: makespan(problem, known[each]))
    effort = budget.effort if len(problem.jobs) <= _EXACT_JOBS else 0.0
    left = None if budget.left is None else max(0.0, budget.left)
    table = solve(problem, seed=budget.seed, effort=effort, time_limit=left, hint=known[name], bound=bound)
    baseline = table.certificate.baseline
    if baseline[1] != "hint":
        return table
    return replace(table, certificate=replace(table.certificate, baseline=(baseline[0], name)))


def _candidates(flow: Flow, starts: Starts, jobs: int, budget: Budget) -> Iterator[tuple[str, Starts]]:
    """Schedules of the tasks alone, by name."""
    yield "as with delays", starts
    yield from named_starts(flow, lambda: budget.blown)
    each = max(1, _VISITS // jobs // len(_DELAYS))
    for share in _DELAYS:
        slower = flow.with_delays(share)
        for policy, back in islice(policies(slower), each):
            make = greedy_back if back else greedy
            yield (
                f"{policy}{', from the end' if back else ''}, delays x {share:g}",
                make(slower, tuning(slower, policy)),
            )


def _turns(problem: Problem, starts: Starts) -> dict[tuple[int, str], list[int]]:
    """The tasks of each device in the order of ``starts``."""
    flat = [start for kind in starts for row in kind for start in row]
    lanes = jobs_by_lane(problem)
    return {lane: sorted(jobs, key=flat.__getitem__) for lane, jobs in lanes.items() if lane[1] == COMPUTE}
