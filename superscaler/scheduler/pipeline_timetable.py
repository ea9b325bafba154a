"""A scheduled pipeline, as ``ss.schedule`` returns it and ``superscaler schedule --json`` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from superscaler.scheduler.flow import Starts
from superscaler.scheduler.periodic import Course
from superscaler.scheduler.pipeline import COMM, COMPUTE, KINDS, PipelineProblem, enumerable, hops, ticks_by_device
from superscaler.scheduler.problem import Certificate, Status

Sends = dict[tuple[str, int, int], int]
"""The start of each send by the kind, stage and micro-batch of what it sends."""
Slot = dict[str, int | str]
"""device, lane, kind, stage, microbatch, start, end"""


@dataclass(frozen=True)
class PipelineTimetable:
    """The course of a pipeline's tasks with its certificate. Times are in the problem's ticks."""

    problem: PipelineProblem
    course: Course
    certificate: Certificate
    sends: Sends | None = None
    """Starts of communication where it had to be scheduled; otherwise each send follows its producer at once."""

    @cached_property
    def starts(self) -> Starts:
        """By kind, stage and micro-batch; written out on first use. :class:`ScheduleError` if they are too many."""
        enumerable(self.problem)
        return self.course.expand()

    @property
    def status(self) -> Status:
        """``optimal``, ``feasible``, ``time_limit`` or ``constructive``: see :class:`Certificate`."""
        return self.certificate.status

    @property
    def makespan(self) -> int:
        """The end of the last task of any device."""
        return self.certificate.makespan

    @property
    def bound(self) -> int:
        """No schedule is shorter."""
        return self.certificate.bound

    @property
    def gap(self) -> float:
        """``(makespan - bound) / makespan``."""
        return self.certificate.gap

    @property
    def bubble(self) -> float:
        """The idle share of all devices over the makespan."""
        problem = self.problem
        return 1 - problem.work / (problem.shape.devices * self.makespan)

    @property
    def seconds(self) -> float:
        """Wall seconds that it took to find."""
        return self.certificate.seconds

    @property
    def slots(self) -> list[Slot]:
        """Every task and send: device, lane, kind, stage, microbatch, start, end."""
        return [slot for row in chain(self._tasks(), self._sends()) for slot in row]

    def _tasks(self) -> Iterator[list[Slot]]:
        """By kind and stage."""
        for kind, rows in zip(KINDS, self.starts, strict=True):
            for stage, (row, ticks) in enumerate(zip(rows, ticks_by_device(self.problem, kind), strict=True)):
                yield [
                    {
                        "device": device,
                        "lane": COMPUTE,
                        "kind": kind,
                        "stage": stage,
                        "microbatch": j,
                        "start": start,
                        "end": start + ticks[device],
                    }
                    for j, (device, start) in enumerate(zip(self._devices(stage), row, strict=True))
                ]

    def _sends(self) -> Iterator[list[Slot]]:
        """By what is sent and the stage that sends it."""
        problem = self.problem
        for kind, stage, to in hops(problem) if problem.comm else ():
            yield [
                {
                    "device": device,
                    "lane": COMM,
                    "kind": "send",
                    "stage": stage,
                    "microbatch": j,
                    "start": start,
                    "end": start + problem.comm,
                }
                for j, (device, other, start) in enumerate(
                    zip(self._devices(stage), self._devices(to), self._posted(kind, stage), strict=True)
                )
                if device != other
            ]

    def _posted(self, kind: str, stage: int) -> list[int]:
        """When each micro-batch's send starts; where it has none, when the task ends."""
        row, ticks = self.starts[KINDS.index(kind)][stage], ticks_by_device(self.problem, kind)[stage]
        ends = [start + ticks[device] for device, start in zip(self._devices(stage), row, strict=True)]
        if self.sends is None:
            return ends
        return [self.sends.get((kind, stage, j), end) for j, end in enumerate(ends)]

    def _devices(self, stage: int) -> list[int]:
        """Where ``stage`` lies for each micro-batch."""
        shape = self.problem.shape
        return [device for j, count in self.problem.directions for device in [shape.device(stage, j)] * count]
