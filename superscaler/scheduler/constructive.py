"""Named schedules: a function from the shape of a pipeline to the order of each device, checked statically.

A schedule of one's own is a function and a decorator::

    @named("mine", placements=("linear",))
    def mine(shape: Shape) -> Orders:
        return [[step(kind, device, j) for j in range(shape.microbatches) for kind in KINDS] for device in ...]

Orders list forward, input-gradient ("backward") and weight-gradient ("weight") steps. A program whose backward is not
split in two leaves the weight steps out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from superscaler.errors import ScheduleError, UsageError, did_you_mean
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Job, Lane, Problem, topological_order

Step = tuple[str, int, int]
"""kind, stage, micro-batch"""
Orders = list[list[Step]]
"""One list of steps per device."""

PLACEMENTS = ("linear", "v", "interleaved", "bidirectional")


@dataclass(frozen=True, slots=True)
class Shape:
    """A pipeline without its costs.

    ``placement``: ``linear``: stage s on device s. ``v``: two stages a device, s on ``min(s, 2P-1-s)``.
    ``interleaved``: s on ``s % P``. ``bidirectional``: every device holds two stages, s and P-1-s; the second half of
    the micro-batches runs from device P-1 down to 0. ``passes``: forwards per micro-batch, all but the last without
    gradient and of kind ``forward1``, ``forward2`` ….
    """

    stages: int
    devices: int
    microbatches: int
    placement: str = "linear"
    passes: int = 1

    def device(self, stage: int, microbatch: int = 0) -> int:
        """The device of ``stage`` for ``microbatch``."""
        if self.placement == "v":
            return min(stage, 2 * self.devices - 1 - stage)
        if self.placement == "bidirectional" and 2 * microbatch >= self.microbatches:
            return self.devices - 1 - stage
        return stage % self.devices

    @staticmethod
    def of(where: Sequence[int], microbatches: int, passes: int = 1) -> Shape | None:
        """The shape of a pipeline whose stage s lies on device ``where[s]``, devices numbered as they come, or None."""
        stages, devices = len(where), len(set(where))
        for placement in ("linear", "v", "interleaved"):
            shape = Shape(stages, devices, microbatches, placement, passes)
            if _regular(shape) and [shape.device(s) for s in range(stages)] == list(where):
                return shape
        return None

    def stages_of(self, device: int) -> list[int]:
        """The stages of ``device``, in order."""
        return [stage for stage in range(self.stages) if self.device(stage) == device]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of step of one stage and micro-batch, in order of dependence within a pass."""
        return (*(f"forward{i}" for i in range(1, self.passes)), "forward", "backward", "weight")


def _regular(shape: Shape) -> bool:
    """Whether the numbers of stages and devices go with the placement."""
    wanted = {"linear": shape.devices, "v": 2 * shape.devices, "bidirectional": shape.devices}
    return shape.stages == wanted.get(shape.placement, shape.stages)


@dataclass(frozen=True, slots=True)
class NamedSchedule:
    """A registered schedule: its name, where its stages may lie, the passes it needs, and its orders.

    ``weight_apart``: whether weight gradients have places of their own, rather than right after their input gradients.
    """

    name: str
    placements: tuple[str, ...]
    passes: int
    build: Callable[[Shape], Orders]
    weight_apart: bool = True

    @property
    def doc(self) -> str:
        """The first line of its docstring."""
        return (self.build.__doc__ or "").strip().splitlines()[0] if self.build.__doc__ else ""


_REGISTRY: dict[str, NamedSchedule] = {}


def named(
    name: str, *, placements: Sequence[str] = ("linear",), passes: int = 1, weight_apart: bool = True
) -> Callable[[Callable[[Shape], Orders]], Callable[[Shape], Orders]]:
    """Register a schedule under ``name``; ``placements[0]`` is the one it is used with unless told otherwise.

    ``weight_apart=False``: its weight gradients come right after their input gradients, and may be one task with them.
    """

    def register(build: Callable[[Shape], Orders]) -> Callable[[Shape], Orders]:
        _REGISTRY[name] = NamedSchedule(name, tuple(placements), passes, build, weight_apart)
        return build

    return register


def schedules() -> Mapping[str, NamedSchedule]:
    """The registered schedules by name."""
    return dict(_REGISTRY)


def find(name: str) -> NamedSchedule:
    """The schedule called ``name``; :class:`UsageError` with a suggestion if there is none."""
    known = schedules()
    if name not in known:
        raise UsageError(f"no schedule is called {name!r}", hint=did_you_mean(str(name), [*known, "solve"]))
    return known[name]


def orders(name: str, shape: Shape) -> Orders:
    """The orders of the schedule ``name`` for ``shape``, checked: every step once, on its device, without a cycle."""
    schedule = find(name)
    if shape.placement not in schedule.placements:
        raise UsageError(
            f"schedule {name!r} does not go with placement {shape.placement!r}",
            hint=f"placement {' or '.join(schedule.placements)}",
        )
    if (shape.passes > 1) != (schedule.passes > 1):
        several = "several forwards" if schedule.passes > 1 else "one forward"
        raise UsageError(
            f"schedule {name!r} is for {several} per micro-batch, not {shape.passes}",
            hint="3f1b" if shape.passes > 1 else "another schedule",
        )
    result = schedule.build(shape)
    check(shape, result)
    return result


def check(shape: Shape, result: Orders, max_activations: Sequence[int | None] | None = None) -> None:
    """Raise :class:`ScheduleError` unless ``result`` has every step once, on its device, acyclic, within memory."""
    wanted = {
        (kind, stage, j): shape.device(stage, j)
        for stage in range(shape.stages)
        for j in range(shape.microbatches)
        for kind in shape.kinds
    }
    placed: dict[Step, int] = {}
    for device, steps in enumerate(result):
        for step in steps:
            if step in placed:
                raise ScheduleError(
                    f"{_name(step)} comes twice: on device {placed[step]} and on device {device}",
                    hint="each step once, in the order of its device: shape.device(stage, microbatch)",
                )
            if wanted.get(step) != device:
                where = f"belongs on device {wanted[step]}" if step in wanted else "is no step of this pipeline"
                raise ScheduleError(
                    f"{_name(step)} is ordered on device {device} but {where}",
                    hint="each step once, in the order of its device: shape.device(stage, microbatch)",
                )
            placed[step] = device
    for step, device in wanted.items():
        if step not in placed:
            raise ScheduleError(
                f"{_name(step)} is missing from the order of device {device}",
                hint="each step once, in the order of its device: shape.device(stage, microbatch)",
            )
    _check_acyclic(shape, result)
    for device, limit in enumerate(max_activations or ()):
        peak = peak_activations(result[device])
        if limit is not None and peak > limit:
            raise ScheduleError(
                f"the order holds {peak} activations on device {device}",
                f"memory[{device}] is {limit}",
                hint="another schedule, or order='solve'",
            )


def peak_activations(steps: Sequence[Step]) -> int:
    """The most activations that one device holds at once: taken by a forward, given back by its weight gradient."""
    level = peak = 0
    for kind, _, _ in steps:
        level += (kind == "forward") - (kind == "weight")
        peak = max(peak, level)
    return peak


def dependencies(shape: Shape, microbatch: int) -> list[tuple[Step, Step]]:
    """The data dependencies among the steps of one micro-batch."""
    j, last = microbatch, shape.stages - 1
    forwards = [(kind, stage, j) for kind in shape.kinds[:-2] for stage in range(shape.stages)]
    backwards = [("backward", stage, j) for stage in range(last, -1, -1)]
    kept = [(("forward", stage, j), ("backward", stage, j)) for stage in range(shape.stages)]
    weights = [(("backward", stage, j), ("weight", stage, j)) for stage in range(shape.stages)]
    return [*pairwise([*forwards, *backwards]), *kept, *weights]


def _check_acyclic(shape: Shape, result: Orders) -> None:
    steps = [(device, step) for device, order in enumerate(result) for step in order]
    index = {step: place for place, (_, step) in enumerate(steps)}
    jobs = [Job(device, step[0], step[1], step[2], 1, ()) for device, step in steps]
    edges = [(index[a], index[b]) for order in result for a, b in pairwise(order)]
    for j in range(shape.microbatches):
        edges += [(index[a], index[b]) for a, b in dependencies(shape, j)]
    topological_order(jobs, edges)


def lane_order(problem: Problem, result: Orders, lane: str = "compute") -> dict[Lane, list[int]]:
    """The orders of a schedule as orders of jobs on the compute lanes of ``problem``.

    Steps that ``problem`` has no job for are left out. Of the jobs that the schedule does not know, a recompute goes
    right before the backward of its stage and micro-batch, everything else (reductions, optimizer) to the end.
    """
    jobs = {
        (job.device, job.kind, job.stage, job.microbatch): index
        for index, job in enumerate(problem.jobs)
        if (job.device, lane) in job.lanes
    }
    found: dict[Lane, list[int]] = {}
    for device, steps in enumerate(result):
        turns: list[int] = []
        for kind, stage, j in steps:
            before = ("recompute",) if kind == "backward" else ()
            turns += [jobs[name] for k in (*before, kind) if (name := (device, k, stage, j)) in jobs]
        known = set(turns)
        found[device, lane] = turns + [i for name, i in jobs.items() if name[0] == device and i not in known]
    return found


def schedule_by_name(problem: Problem, name: str, shape: Shape) -> tuple[int, ...]:
    """Starts of the jobs of ``problem`` under the named schedule."""
    return list_schedule(problem, lane_order(problem, orders(name, shape)))


def _name(step: Step) -> str:
    return f"{step[0]}[stage {step[1]}, micro-batch {step[2]}]"
