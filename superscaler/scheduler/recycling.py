"""3F1B: micro-batches that pass the pipeline several times before their one backward, in steady state.

A micro-batch goes through all stages forward, returns to the first, and so on; only its last pass has a backward. The
order of a device is a slanted one: pass ``i`` of a micro-batch is due ``lag`` after pass ``i - 1``, a period after the
same pass of the micro-batch before. Backwards go first. How large the lag is, and how many micro-batches are under way
at once, is tried, smallest first, against the least that the pipeline can take: (P-1)(F+B) + M(nF+B).
"""

from __future__ import annotations

from collections.abc import Iterator

from superscaler.scheduler.constructive import Orders, Shape, dependencies, named
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Job, Problem, makespan

FORWARD, BACKWARD = 1, 2
"""Ticks of a stage's forward and of its whole backward."""
LAGS = (1.0, 1.5, 2.0, 2.5, 3.0)
"""Lags to try, in forwards through all stages."""


@named("3f1b", passes=3, weight_apart=False)
def three_forward_one_backward(shape: Shape) -> Orders:
    """Several forwards of which the last keeps its activations, then one backward (SuperScaler's 3F1B)."""
    period = shape.passes * FORWARD + BACKWARD
    least = (shape.devices - 1) * (FORWARD + BACKWARD) + shape.microbatches * period
    best: tuple[int, Orders] | None = None
    for in_flight in _in_flight(shape):
        problem = _problem(shape, in_flight)
        for priority in _priorities(shape, problem, period):
            starts = list_schedule(problem, priority)
            length = makespan(problem, starts)
            if best is None or length < best[0]:
                best = length, _orders(shape, problem, starts)
        if best is not None and best[0] <= least:
            break
    assert best is not None
    return best[1]


def _in_flight(shape: Shape) -> Iterator[int]:
    """How many micro-batches to let in at once: a round trip of all passes takes about two per device."""
    few = min(2 * shape.devices, shape.microbatches)
    yield from range(few, min(few + 3, shape.microbatches + 1))


def _problem(shape: Shape, in_flight: int) -> Problem:
    jobs: list[Job] = []
    index: dict[tuple[str, int, int], int] = {}
    edges: list[tuple[int, int, int]] = []
    ticks = {"backward": BACKWARD, "weight": 0}
    for j in range(shape.microbatches):
        for stage in range(shape.stages):
            for kind in shape.kinds:
                index[kind, stage, j] = len(jobs)
                jobs.append(Job(stage, kind, stage, j, ticks.get(kind, FORWARD), ((stage, "compute"),)))
        edges += [(index[a], index[b], 0) for a, b in dependencies(shape, j)]
        if j >= in_flight:
            edges.append((index["backward", 0, j - in_flight], index[shape.kinds[0], 0, j], 0))
    return Problem(tuple(jobs), tuple(edges), (None,) * shape.devices)


def _priorities(shape: Shape, problem: Problem, period: int) -> Iterator[list[float]]:
    """When each job is due, for every lag; with backwards as soon as they can be, and when due."""
    forwards = shape.kinds[:-2]
    soon = -float(len(problem.jobs) * period)
    for lag in LAGS:
        due = {kind: i * lag * shape.devices * FORWARD for i, kind in enumerate(forwards)}
        late = len(forwards) * lag * shape.devices * FORWARD
        for backward in (soon, late):
            offset = {**due, "backward": backward, "weight": 2 * soon}
            yield [offset[job.kind] + job.microbatch * period for job in problem.jobs]


def _orders(shape: Shape, problem: Problem, starts: tuple[int, ...]) -> Orders:
    """The steps of each device in order of start; a weight gradient right after its backward."""
    result: Orders = [[] for _ in range(shape.devices)]
    ended = [start + job.duration for start, job in zip(starts, problem.jobs, strict=True)]
    for i in sorted(range(len(starts)), key=lambda i: (starts[i], ended[i], i)):
        job = problem.jobs[i]
        if job.kind != "weight":
            result[job.device].append((job.kind, job.stage, job.microbatch))
        if job.kind == "backward":
            result[job.device].append(("weight", job.stage, job.microbatch))
    return result
