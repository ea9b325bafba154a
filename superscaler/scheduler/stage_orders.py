"""The order of an entry's stages on its devices: that of a named schedule where it goes with their placement.

Stages that share devices in no regular way are woven: what frees memory first, then earlier micro-batches.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from superscaler.errors import PlanError, ScheduleError
from superscaler.scheduler import constructive
from superscaler.scheduler.bounds import heads_and_tails
from superscaler.scheduler.constructive import Orders, Shape
from superscaler.scheduler.entry_problem import EntryProblem
from superscaler.scheduler.listing import LaneOrder, list_schedule
from superscaler.scheduler.problem import Problem, makespan
from superscaler.scheduler.weaving import rounds

MICROBATCHED = ("forward", "backward", "weight", "recompute")
DEFAULTS = ("1f1b", "gpipe")
"""Schedules that nobody need have asked for: where they do not fit, stages are woven."""
_AFTER = {"reduce": 2, "optimizer": 2, "collective": 2}


def starts_under(entry: EntryProblem, problem: Problem, name: str) -> tuple[tuple[int, ...], str]:
    """The starts of all jobs under the schedule ``name``, and what that is called.

    Raises :class:`PlanError` if the schedule does not go with where the stages lie, :class:`ScheduleError` if it runs
    out of the problem's memory.
    """
    if entry.lowered.tasks.microbatches == 1:
        return list_schedule(problem, lane_orders(entry, [])), name
    shape = shape_of(entry, constructive.find(name).passes)
    if shape is not None and (wanted := _goes_with(name, shape)) is not None:
        return list_schedule(problem, lane_orders(entry, _orders(name, wanted))), name
    if name in DEFAULTS:
        return woven(entry, problem)
    places = " or ".join(constructive.find(name).placements)
    raise PlanError(
        f"schedule {name!r} does not go with where the stages lie",
        f"it is for stages placed {places}; these are {shape.placement if shape else 'placed in no regular way'}",
        hint=f"placement={constructive.find(name).placements[0]}, or schedule=solve",
    )


def fitting(entry: EntryProblem) -> list[str]:
    """The names of the schedules that go with where the stages lie."""
    found: list[str] = []
    for name, schedule in constructive.schedules().items():
        shape = shape_of(entry, schedule.passes)
        if (schedule.passes > 1) == (entry.passes > 1) and shape is not None and _goes_with(name, shape) is not None:
            found.append(name)
    return found


def shape_of(entry: EntryProblem, passes: int = 1) -> Shape | None:
    """The pipeline that the stages form over classes of devices, or None. ``passes``: 1 if the schedule knows but one.

    Every device of one class does the same at the same time, so a bidirectional pipeline is a V over pairs of them.
    """
    tasks = entry.lowered.tasks
    groups = [tuple(entry.classes[mesh]) for mesh in tasks.stages]
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len({c for group in numbers for c in group}) != sum(map(len, numbers)):
        return None
    return Shape.of([numbers[group] for group in groups], tasks.microbatches, entry.passes if passes > 1 else 1)


def _goes_with(name: str, shape: Shape) -> Shape | None:
    """The shape that the schedule is to be made for, or None."""
    placements = constructive.find(name).placements
    if shape.placement in placements:
        return shape
    if shape.devices == 1 and "interleaved" in placements:  # stages of one device lie in a V and in turn
        return replace(shape, placement="interleaved")
    if shape.placement == "v" and "bidirectional" in placements:
        return replace(shape, devices=shape.stages, microbatches=2 * shape.microbatches, placement="bidirectional")
    return None


def _orders(name: str, shape: Shape) -> Orders:
    """The orders of the schedule, by class: of a bidirectional one, those of the first of each pair of devices."""
    found = constructive.orders(name, shape)
    if shape.placement != "bidirectional":
        return found
    half = shape.microbatches // 2
    return [[(kind, s, j % half) for kind, s, j in steps] for steps in found[: shape.devices // 2]]


def lane_orders(entry: EntryProblem, orders: Orders) -> LaneOrder:
    """The order of each compute lane: what comes before the micro-batches, ``orders``, what comes after."""
    rank = {step: float(place) for steps in orders for place, step in enumerate(steps)}
    lanes: dict[tuple[int, str], list[int]] = {}
    for i, job in enumerate(entry.jobs):
        for lane in job.lanes:
            if lane[1] == "compute":
                lanes.setdefault(lane, []).append(i)

    def position(i: int) -> tuple[int, float, int]:
        job = entry.jobs[i]
        modelled = job.kind in MICROBATCHED or job.kind.startswith("forward")
        when = _AFTER.get(job.kind, 1 if modelled or job.microbatch >= 0 else 0)
        place = rank.get((job.kind, job.stage, job.microbatch), 0.0) if when == 1 else 0.0
        return when, place, entry.topological[i]

    return {lane: sorted(found, key=position) for lane, found in lanes.items()}


def woven(entry: EntryProblem, problem: Problem) -> tuple[tuple[int, ...], str]:
    """The starts of all jobs of stages that share devices in no regular way: in rounds or greedily, if that is shorter.

    Raises :class:`ScheduleError` if neither fits in the problem's memory.
    """
    tasks = entry.lowered.tasks
    in_rounds = lane_orders(entry, rounds([entry.classes[mesh] for mesh in tasks.stages], tasks.microbatches))
    found: list[tuple[tuple[int, ...], str]] = []
    for name, order in (("woven in rounds", in_rounds), ("woven greedily", weave(problem))):
        with suppress(ScheduleError):
            found.append((list_schedule(problem, order), name))
    if not found:
        return list_schedule(problem, weave(problem)), "woven greedily"
    return min(found, key=lambda each: makespan(problem, each[0]))


def weave(problem: Problem) -> list[float]:
    """Priorities for stages that share devices: what frees memory goes first, then earlier micro-batches.

    A forward counts as late as the micro-batches that may be in flight before it, so that as many are as a 1F1B
    pipeline holds.
    """
    heads, _ = heads_and_tails(problem)
    depth = max(job.stage for job in problem.jobs) + 1
    order = {"backward": 0, "weight": 0}
    longest = max(heads) + 1
    return [
        (max(job.microbatch, 0) - (depth if job.kind in order else 0)) * longest + heads[i]
        for i, job in enumerate(problem.jobs)
    ]
