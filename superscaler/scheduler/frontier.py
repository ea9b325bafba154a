"""The memory frontier of a pipeline: the shortest schedule for each amount of memory, with its certificate.

Scheduling alone first; then with recomputation and swap decided together. A schedule that needs more memory is taken
as it is, and every device swaps out, or makes again in its idle gaps, what does not fit, at a stated link bandwidth.
If each can, no compute task moves, so the time is the same. The bound is that of unlimited memory: swapping takes
none of it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf

from superscaler.errors import ScheduleError
from superscaler.scheduler.bounds import Bound
from superscaler.scheduler.certified import EFFORT, solve_pipeline
from superscaler.scheduler.flow import BACKWARD, FORWARD, WEIGHT, flow_of
from superscaler.scheduler.pipeline import COMPUTE, PipelineProblem, job_index, to_problem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable
from superscaler.scheduler.problem import Edge, Problem, makespan, verify
from superscaler.scheduler.ramps import ramp_bound
from superscaler.scheduler.relief import Life, Relief

OUT, IN = "swap_out", "swap_in"
_SLOWEST = 64
"""Ticks per transfer from which on swapping is taken to be of no use."""


@dataclass(frozen=True, slots=True)
class Swapping:
    """What is swapped, over what: bytes of one activation of a stage, bytes per second either way, seconds per tick."""

    activation: int
    bandwidth: float
    tick: float

    def __post_init__(self) -> None:
        for name, value in (("activation", self.activation), ("bandwidth", self.bandwidth), ("tick", self.tick)):
            if not 0 < value < inf:
                raise ScheduleError(f"{name} is {value}", hint="more than 0: bytes, bytes per second, seconds")

    @property
    def ticks(self) -> int:
        """The ticks that one activation takes over the link, either way."""
        return max(1, ceil(self.activation / (self.bandwidth * self.tick)))


@dataclass(frozen=True, slots=True)
class Point:
    """The best schedule known within ``memory`` activations per device, and what it took besides scheduling."""

    memory: int
    makespan: int
    bound: int
    bubble: float
    swaps: int
    recomputes: int
    problem: Problem
    starts: tuple[int, ...]


def scheduling_alone(
    problem: PipelineProblem, memories: Iterable[int], *, seed: int = 0, effort: float = EFFORT
) -> dict[int, PipelineTimetable]:
    """The certified timetable for each number of activations; a bigger memory is never worse than a smaller one."""
    curve: dict[int, PipelineTimetable] = {}
    best: PipelineTimetable | None = None
    for memory in sorted(memories):
        limited = replace(problem, max_activations=memory)
        table = solve_pipeline(limited, seed=seed, effort=effort)
        if best is not None and best.makespan < table.makespan:
            certificate = replace(table.certificate, makespan=best.makespan)
            table = PipelineTimetable(limited, best.course, certificate)
        curve[memory] = best = table
    return curve


def with_relief(
    curve: dict[int, PipelineTimetable], memory: int, swap: Swapping | None, *, recompute: bool = True, seed: int = 0
) -> Point | None:
    """The shortest schedule of ``curve`` that fits in ``memory`` with swap (unless None) and recomputation, or None.

    The result is verified as a :class:`Problem` with its transfers and second forwards as jobs.
    """
    transfer = None if swap is None else swap.ticks
    for table in sorted(curve.values(), key=lambda table: (table.makespan, table.problem.limits[0] or 0)):
        reliefs = _relieve(table, memory, transfer, recompute, seed)
        if reliefs is not None:
            return _point(table, memory, transfer, reliefs)
    return None


def least_bandwidth(
    curve: dict[int, PipelineTimetable], memory: int, bubble: float, activation: int, tick: float, *, seed: int = 0
) -> tuple[Swapping, Point] | None:
    """The slowest link over which ``memory`` is shown to be enough for at most ``bubble``, with the schedule; or None.

    ``activation``: bytes of one activation of one stage; ``tick``: seconds. By bisection over whole ticks per transfer.
    """
    best: tuple[Swapping, Point] | None = None
    low, high = 0, _SLOWEST
    while high - low > 1:
        middle = (low + high) // 2
        swap = Swapping(activation, activation / (middle * tick), tick)
        point = with_relief(curve, memory, swap, seed=seed)
        if point is not None and point.bubble <= bubble:
            low, best = middle, (swap, point)
        else:
            high = middle
    return best


def unlimited_bound(problem: PipelineProblem) -> Bound:
    """The bound that holds whatever is swapped or made again."""
    return ramp_bound(flow_of(replace(problem, max_activations=None)))


def _relieve(
    table: PipelineTimetable, memory: int, transfer: int | None, recompute: bool, seed: int
) -> dict[tuple[int, int], Relief] | None:
    """By (stage, micro-batch), for every device; None if one device cannot."""
    from superscaler.scheduler.cpsat_memory import relieve

    flow = flow_of(table.problem)
    starts, sizes = table.starts, flow.duration
    found: dict[tuple[int, int], Relief] = {}
    for mine in flow.stages_of:
        names = [(s, j) for s in mine for j in range(flow.microbatches)]
        lives = [
            Life(
                starts[FORWARD][s][j],
                starts[FORWARD][s][j] + sizes[FORWARD][s],
                starts[BACKWARD][s][j],
                starts[WEIGHT][s][j] + sizes[WEIGHT][s],
            )
            for s, j in names
        ]
        busy = sorted((starts[k][s][j], starts[k][s][j] + sizes[k][s]) for k in range(3) for s, j in names)
        reliefs = relieve(lives, _merged(busy), memory, transfer, recompute=recompute, seed=seed)
        if reliefs is None:
            return None
        found.update(zip(names, reliefs, strict=True))
    return found


def _merged(busy: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without a gap between them as one."""
    spans: list[tuple[int, int]] = []
    for start, end in busy:
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _point(
    table: PipelineTimetable, memory: int, transfer: int | None, reliefs: dict[tuple[int, int], Relief]
) -> Point:
    problem, starts = _with_jobs(table, memory, transfer or 0, reliefs)
    verify(problem, starts)
    length = makespan(problem, starts)
    hows = [relief.how for relief in reliefs.values()]
    return Point(
        memory=memory,
        makespan=length,
        bound=unlimited_bound(table.problem).value,
        bubble=table.bubble,
        swaps=hows.count("swap"),
        recomputes=hows.count("recompute"),
        problem=problem,
        starts=starts,
    )


def _with_jobs(
    table: PipelineTimetable, memory: int, transfer: int, reliefs: dict[tuple[int, int], Relief]
) -> tuple[Problem, tuple[int, ...]]:
    """The problem with its transfers and second forwards as jobs, and the starts of all."""
    pipeline = replace(table.problem, max_activations=memory)
    plain = to_problem(pipeline, sends=False)
    jobs, edges = list(plain.jobs), list(plain.edges)
    starts = [t for kind in table.starts for row in kind for t in row]
    for (s, j), relief in reliefs.items():
        if relief.how == "keep":
            continue
        forward, backward = (job_index(pipeline, kind, s, j) for kind in ("forward", "backward"))
        first = jobs[forward]
        if relief.how == "swap":
            out = replace(first, kind=OUT, duration=transfer, lanes=((first.device, OUT),), acquire=0, release=1)
            back = replace(first, kind=IN, duration=transfer, lanes=((first.device, IN),), acquire=1, release=0)
            added = [(out, relief.out), (back, relief.back)]
        else:
            jobs[forward] = replace(first, release=first.acquire)
            added = [(replace(first, kind="recompute", lanes=((first.device, COMPUTE),)), relief.back)]
        edges += _chain(forward, len(jobs), len(added), backward)
        jobs += [job for job, _ in added]
        starts += [start for _, start in added]
    return Problem(tuple(jobs), tuple(edges), plain.capacity), tuple(starts)


def _chain(before: int, first: int, count: int, after: int) -> list[Edge]:
    places = [before, *range(first, first + count), after]
    return [(a, b, 0) for a, b in pairwise(places)]
