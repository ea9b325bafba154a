"""A pipeline as a scheduling question: stages, micro-batches, integer costs, memory counted in activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from superscaler.errors import ScheduleError, UsageError, did_you_mean
from superscaler.ir.argument import limits, whole, whole_or_several, wholes
from superscaler.scheduler.constructive import PLACEMENTS, Shape
from superscaler.scheduler.problem import Edge, Job, Problem

COMPUTE = "compute"
COMM = "comm"
KINDS = ("forward", "backward", "weight")
MOST_STAGES = 1024
MOST_TICKS = 10**9
"""The longest task or delay: sums of them stay far within what the exact solver can count."""
MOST_TASKS = 1_000_000
"""The most tasks that are scheduled, or written out, one by one."""


@dataclass(frozen=True)
class PipelineProblem:
    """The question of ``superscaler schedule``. Times are integers in any unit, activations are counted.

    ``forward``, ``backward`` (input gradient) and ``weight`` cost what they cost on a device of speed 1: one number, or
    one per stage. ``comm`` is the delay between stages on different devices, on the sender's communication lane.
    ``max_activations``: one number or one per device (``None``: unlimited) of activations of one micro-batch of one
    stage, taken at the start of a forward and given back at the end of its weight gradient. ``speed`` has one integer
    per device; a duration is the cost divided by it, rounded up. ``devices`` defaults to ``stages`` (``v``: half).
    """

    stages: int
    microbatches: int
    forward: int | tuple[int, ...] = 10
    backward: int | tuple[int, ...] = 10
    weight: int | tuple[int, ...] = 10
    comm: int = 0
    max_activations: int | tuple[int | None, ...] | None = None
    devices: int | None = None
    placement: str = "linear"
    speed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._take_integers()
        _positive("stages", self.stages)
        _positive("micro-batches", self.microbatches)
        if self.stages > MOST_STAGES:
            raise ScheduleError(f"{self.stages} stages", hint=f"at most {MOST_STAGES}")
        if not 0 <= self.comm <= MOST_TICKS:
            raise ScheduleError(f"comm is {self.comm}", hint=f"a delay of 0 to {MOST_TICKS}")
        if self.placement not in PLACEMENTS:
            raise UsageError(
                f"no placement is called {self.placement!r}", hint=did_you_mean(str(self.placement), PLACEMENTS)
            )
        if self.placement == "v" and self.stages % 2:
            raise UsageError(
                f"placement v has two stages on every device: {self.stages} are odd", hint="an even number"
            )
        devices = self.shape.devices
        _positive("devices", devices)
        if self.placement != "interleaved" and self.stages != devices * (2 if self.placement == "v" else 1):
            raise UsageError(
                f"placement {self.placement} does not fit {self.stages} stages on {devices} devices",
                hint="stages = devices (linear), 2 x devices (v), or placement interleaved",
            )
        if self.stages < devices:
            raise UsageError(f"{devices} devices for {self.stages} stages", hint="at least one stage per device")
        for kind in KINDS:
            self._per("stage", kind, self.costs(kind), self.stages)
            if max(self.costs(kind)) > MOST_TICKS:
                raise ScheduleError(f"{kind} takes {max(self.costs(kind))} ticks", hint=f"at most {MOST_TICKS}")
        self._per("device", "speed", self.speed or (1,) * devices, devices)
        self._per("device", "max_activations", [1 if limit is None else limit for limit in self.limits], devices)

    def _take_integers(self) -> None:
        """Lists are taken as well as tuples, integers of any type; :class:`UsageError` for anything else."""
        put = partial(object.__setattr__, self)
        for name in ("stages", "microbatches", "comm"):
            put(name, whole(getattr(self, name), name))
        for kind in KINDS:
            put(kind, whole_or_several(getattr(self, kind), kind))
        put("max_activations", limits(self.max_activations, "max_activations"))
        put("devices", None if self.devices is None else whole(self.devices, "devices"))
        put("speed", wholes(self.speed, "speed"))

    @staticmethod
    def _per(what: str, name: str, values: Sequence[int], count: int) -> None:
        if len(values) != count:
            raise ScheduleError(f"{name} has {len(values)} entries for {count} {what}s", hint=f"one per {what}")
        for place, value in enumerate(values):
            if value <= 0:
                raise ScheduleError(f"{name} of {what} {place} is {value}", hint="an integer of 1 or more")

    @property
    def shape(self) -> Shape:
        """The pipeline without its costs."""
        default = self.stages // 2 if self.placement == "v" else self.stages
        return Shape(self.stages, default if self.devices is None else self.devices, self.microbatches, self.placement)

    @property
    def limits(self) -> tuple[int | None, ...]:
        """The activations that each device can hold."""
        limit = self.max_activations
        return limit if isinstance(limit, tuple) else (limit,) * self.shape.devices

    def costs(self, kind: str) -> tuple[int, ...]:
        """The cost of ``kind`` for each stage, on a device of speed 1."""
        cost = {"forward": self.forward, "backward": self.backward, "weight": self.weight}[kind]
        return cost if isinstance(cost, tuple) else (cost,) * self.stages

    def durations(self, kind: str, microbatch: int = 0) -> tuple[int, ...]:
        """The ticks that ``kind`` takes for each stage on its device: for ``bidirectional`` that of ``microbatch``."""
        shape, speed = self.shape, self.speed or (1,) * self.shape.devices
        return tuple(-(-cost // speed[shape.device(stage, microbatch)]) for stage, cost in enumerate(self.costs(kind)))

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """``(a micro-batch, how many lie like it)``: the first, and with it the last, which may run the other way."""
        other = self.microbatches // 2
        return (0, self.microbatches - other), (self.microbatches - 1, other)

    @property
    def work(self) -> int:
        """The ticks of all compute tasks together."""
        return sum(
            count * sum(sum(self.durations(kind, microbatch)) for kind in KINDS)
            for microbatch, count in self.directions
        )

    @property
    def tasks(self) -> int:
        """The number of compute tasks."""
        return len(KINDS) * self.stages * self.microbatches

    @property
    def comm_is_a_delay(self) -> bool:
        """Whether sends can never meet on their lane: none is longer than any task that precedes one."""
        return self.comm <= min(
            min(self.durations(kind, microbatch)) for kind in KINDS[:2] for microbatch, _ in self.directions
        )


def job_index(problem: PipelineProblem, kind: str, stage: int, microbatch: int) -> int:
    """Where the compute job stands in :func:`to_problem`: by kind, stage, micro-batch."""
    return (KINDS.index(kind) * problem.stages + stage) * problem.microbatches + microbatch


def to_problem(problem: PipelineProblem, *, sends: bool | None = None) -> Problem:
    """The jobs of the pipeline, first compute by kind, stage and micro-batch, then (with ``sends``) communication.

    Without ``sends`` communication is a delay on the edges. By default sends are jobs when they could meet on a lane.
    """
    enumerable(problem)
    sends = not problem.comm_is_a_delay if sends is None else sends
    shape = problem.shape
    jobs = [
        Job(
            (device := shape.device(stage, j)),
            kind,
            stage,
            j,
            ticks[device],
            ((device, COMPUTE),),
            acquire=int(kind == "forward"),
            release=int(kind == "weight"),
        )
        for kind in KINDS
        for stage, ticks in enumerate(ticks_by_device(problem, kind))
        for j in range(problem.microbatches)
    ]
    edges: list[Edge] = []
    for stage in range(problem.stages):
        for j in range(problem.microbatches):
            f, b, w = (job_index(problem, kind, stage, j) for kind in KINDS)
            edges += [(f, b, 0), (b, w, 0)]
    for kind, stage, to in hops(problem):
        for j in range(problem.microbatches):
            a, b = (job_index(problem, kind, s, j) for s in (stage, to))
            crosses = jobs[a].device != jobs[b].device and problem.comm > 0
            if crosses and sends:
                lane = ((jobs[a].device, COMM),)
                jobs.append(Job(jobs[a].device, f"send_{kind}", stage, j, problem.comm, lane))
                edges += [(a, len(jobs) - 1, 0), (len(jobs) - 1, b, 0)]
            else:
                edges.append((a, b, problem.comm if crosses else 0))
    return Problem(tuple(jobs), tuple(edges), problem.limits)


def ticks_by_device(problem: PipelineProblem, kind: str) -> list[dict[int, int]]:
    """For each stage the ticks that ``kind`` takes on each device that has the stage."""
    found: list[dict[int, int]] = [{} for _ in range(problem.stages)]
    for microbatch, _ in problem.directions:
        for stage, ticks in enumerate(problem.durations(kind, microbatch)):
            found[stage][problem.shape.device(stage, microbatch)] = ticks
    return found


def enumerable(problem: PipelineProblem) -> None:
    """Raise :class:`ScheduleError` if ``problem`` has too many tasks to be looked at one by one."""
    if problem.tasks > MOST_TASKS:
        raise ScheduleError(
            f"{problem.tasks} tasks are too many to be scheduled or written out one by one (at most {MOST_TASKS})",
            f"{problem.stages} stages x {problem.microbatches} micro-batches x {len(KINDS)} kinds",
            hint="fewer micro-batches; solving alone (ss.schedule) takes any number where the schedule repeats itself",
        )


def hops(problem: PipelineProblem) -> list[tuple[str, int, int]]:
    """``(kind, from stage, to stage)`` of what travels between stages."""
    down = [("forward", s, s + 1) for s in range(problem.stages - 1)]
    return down + [("backward", s + 1, s) for s in range(problem.stages - 1)]


def _positive(name: str, value: int) -> None:
    if value <= 0:
        raise ScheduleError(f"{value} {name}", hint="an integer of 1 or more")
