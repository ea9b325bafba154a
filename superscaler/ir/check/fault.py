"""Faults: the ways in which a plan can be wrong, each with a name, a place and what would be right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from superscaler.errors import CheckError

FaultKind = Literal[
    # structure
    "malformed plan", "too large", "wrong rank",
    # ops
    "no rule", "changed op", "illegal split", "discovered rule",
    # values
    "wrong tensor", "wrong layout", "wrong region", "wrong time index", "partial read as complete",
    "complete read as partial", "wrong kind of partial", "mixed partials", "missing value", "read after free",
    "written twice", "stale read", "reduction too early", "counted twice", "not a term", "host value",
    # communication
    "missing communication", "duplicated communication", "mismatched communication", "wrong group", "wrong piece",
    "deadlock",
    # memory
    "double free", "freed result", "no buffer", "buffer too small", "outside the arena", "overlapping buffers",
    "out of memory", "wrong peak",
    # results
    "missing commit", "duplicated commit", "wrong commit", "missing result", "wrong result",
    # schedule
    "overlapping tasks", "task before its input", "wrong certificate",
]  # fmt: skip


_HINT = "compile the plan again; a fault that comes back is a bug to report, with the plan's file"
"""What to try where nobody can say what would be right."""


@dataclass(frozen=True)
class Place:
    """Where in a plan: the entry, the role's workers, the block, its micro-batch, the step."""

    entry: str = ""
    workers: tuple[int, ...] = ()
    block: str = ""
    microbatch: int | None = None
    step: str = ""

    def __str__(self) -> str:
        parts: list[str] = []
        if self.entry:
            parts.append(f"entry {self.entry}")
        if self.workers:
            parts.append(workers_text(self.workers))
        if self.block:
            parts.append(self.block)
        if self.microbatch is not None:
            parts.append(f"micro-batch {self.microbatch}")
        if self.step:
            parts.append(self.step)
        return ", ".join(parts)


class Fault(CheckError):
    """A plan is proven wrong. ``kind`` is one of :data:`FaultKind`; the message says where and what would be right."""

    def __init__(self, kind: FaultKind, what: str, *details: str, hint: str | None = None) -> None:
        super().__init__(f"{kind}: {what}", *details, hint=hint or _HINT)
        self.kind: FaultKind = kind
        self.bare = what

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.kind, self.bare, self.details, self.hint))


def _rebuild(kind: FaultKind, what: str, details: tuple[str, ...], hint: str | None) -> Fault:
    return Fault(kind, what, *details, hint=hint)


def fault(kind: FaultKind, what: str, place: Place | None = None, *why: str, right: str | None = None) -> Fault:
    """A fault at a place; ``right``: what would be right."""
    where = str(place) if place is not None else ""
    details = (f"at {where}", *why) if where else why
    return Fault(kind, what, *details, hint=right)


def workers_text(workers: tuple[int, ...]) -> str:
    """``worker 3``, ``workers 0-7`` or ``workers 0, 4, 8 … (64 of them)``."""
    if len(workers) == 1:
        return f"worker {workers[0]}"
    if workers == tuple(range(workers[0], workers[0] + len(workers))):
        return f"workers {workers[0]}-{workers[-1]}"
    if len(workers) <= 8:
        return "workers " + ", ".join(map(str, workers))
    return "workers " + ", ".join(map(str, workers[:4])) + f" … ({len(workers)} of them)"
