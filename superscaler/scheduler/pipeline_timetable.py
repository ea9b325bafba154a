"""A scheduled pipeline, as ``ss.schedule`` returns it and ``superscaler schedule --json`` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

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
        return [*self._tasks(), *self._sends()]

    def _tasks(self) -> Iterator[Slot]:
        problem, shape = self.problem, self.problem.shape
        for kind, rows in zip(KINDS, self.starts, strict=True):
            for stage, (row, ticks) in enumerate(zip(rows, ticks_by_device(problem, kind), strict=True)):
                for j, start in enumerate(row):
                    device = shape.device(stage, j)
                    yield {
                        "device": device,
                        "lane": COMPUTE,
                        "kind": kind,
                        "stage": stage,
                        "microbatch": j,
                        "start": start,
                        "end": start + ticks[device],
                    }

    def _sends(self) -> Iterator[Slot]:
        problem, shape = self.problem, self.problem.shape
        for kind, stage, to in hops(problem) if problem.comm else ():
            row, ticks = self.starts[KINDS.index(kind)][stage], ticks_by_device(problem, kind)[stage]
            for j, begun in enumerate(row):
                device = shape.device(stage, j)
                if device == shape.device(to, j):
                    continue
                start = begun + ticks[device] if self.sends is None else self.sends[kind, stage, j]
                yield {
                    "device": device,
                    "lane": COMM,
                    "kind": "send",
                    "stage": stage,
                    "microbatch": j,
                    "start": start,
                    "end": start + problem.comm,
                }
