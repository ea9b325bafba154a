"""A Timeline: when every task of one entry runs on every role, how busy the lanes are, what decides the step time."""

from __future__ import annotations

import msgspec

from superscaler.ir.check.fault import workers_text
from superscaler.ir.program import BlockKind, Lane
from superscaler.ir.summary import bytes_text


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One task. ``item``: its place in the Program's order; ``microbatch``: -1 for a task that runs once; times in
    microseconds from the start of the step. ``critical``: whether it is on the critical path."""

    item: int
    name: str
    kind: BlockKind
    lane: Lane
    stage: int
    microbatch: int
    start: int
    end: int
    critical: bool = False


class Level(msgspec.Struct, frozen=True, array_like=True):
    """From ``time`` (microseconds) on, ``bytes`` are held."""

    time: int
    bytes: int


class RoleTimeline(msgspec.Struct, frozen=True):
    """What the workers of one role do. ``busy``: lane -> microseconds in tasks. ``bubble``: idle share of the compute
    lane over the whole step. In bytes, per worker: ``state``; ``arena``; ``peak``, with the largest task's workspace
    too; ``memory``: state and live arena over time."""

    workers: tuple[int, ...]
    spans: tuple[Span, ...]
    busy: dict[str, int]
    bubble: float
    state: int
    arena: int
    peak: int
    memory: tuple[Level, ...]


class Timeline(msgspec.Struct, frozen=True):
    """The predicted course of one run of an entry. ``makespan`` in microseconds; ``bubble``: mean over all workers.

    ``critical``: the chain of tasks, first to last, of which each waits for the one before: (role, item) pairs.
    """

    entry: str
    makespan: int
    bubble: float
    roles: tuple[RoleTimeline, ...]
    critical: tuple[tuple[int, int], ...]

    @property
    def seconds(self) -> float:
        """The predicted time of one step."""
        return self.makespan / 1e6

    @property
    def workers(self) -> int:
        return sum(len(role.workers) for role in self.roles)

    @property
    def peak(self) -> int:
        """The largest peak of any worker, in bytes."""
        return max((role.peak for role in self.roles), default=0)

    def role_of(self, worker: int) -> RoleTimeline:
        """The role that a worker plays."""
        return next(role for role in self.roles if worker in role.workers)

    def __str__(self) -> str:
        lines = [
            f"{self.entry}: {self.seconds:.4g} s a step on {self.workers} workers, bubble {self.bubble:.1%}, "
            f"peak {bytes_text(self.peak)}"
        ]
        for role in self.roles:
            lanes = ", ".join(f"{lane} {busy / 1e6:.4g} s" for lane, busy in role.busy.items())
            lines.append(
                f"  {workers_text(role.workers)}: {lanes}, bubble {role.bubble:.1%}, peak {bytes_text(role.peak)}"
            )
        return "\n".join(lines)
