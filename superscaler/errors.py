"""The exceptions of superscaler: every error a user can cause is one of these.

    SuperscalerError
    ├── TraceError            the model cannot be traced (names the source line)
    ├── PlanError             the plan does not fit the model or the cluster
    │   ├── SplitError        an op or tensor cannot be split as asked
    │   └── InfeasiblePlan    no schedule fits the limits (names those in conflict)
    ├── ScheduleError         a scheduling problem or order is malformed (cycles are printed)
    ├── CheckError            a plan is proven wrong: what, on which worker, at which task
    ├── PlanFileError         a plan file is truncated, edited, or of another version
    ├── ClusterError          a cluster description is wrong or too small
    ├── ProfileError          a profile is missing, broken, or of another machine
    ├── UsageError            an unknown name, option or argument ("did you mean …")
    ├── CheckpointError       a checkpoint does not fit the plan, or could not be written
    ├── VirtualMemoryError    virtual memory: see its subclasses
    │   ├── OutOfMemory       the pool's budget, or the machine, has no more
    │   ├── UseAfterFree      a freed vTensor was used
    │   └── BackendUnavailable  the memory backend cannot run here (no driver, say)
    └── RunError              a job failed while running
        ├── InputError        inputs of another shape, dtype or count than the plan's
        ├── NonFiniteLoss     the loss is NaN or infinite, and nan="raise"
        └── WorkerError       a worker died or failed (its index and last task)

Each error says what happened, where, why, and what to try, one line each, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SuperscalerError(Exception):
    """Base of all errors of superscaler.

    ``what`` is one line; ``details`` are further lines (where, why); ``hint`` is what to try.
    """

    def __init__(self, what: str, *details: str, hint: str | None = None) -> None:
        self.what = what
        self.details = details
        self.hint = hint
        super().__init__(what, *details)

    def __str__(self) -> str:
        lines = [self.what, *("  " + line for line in self.details)]
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.details, self.hint))


def _rebuild(kind: type[SuperscalerError], what: str, details: tuple[str, ...], hint: str | None) -> SuperscalerError:
    return kind(what, *details, hint=hint)


class TraceError(SuperscalerError):
    """The model cannot be traced."""


class PlanError(SuperscalerError):
    """The plan does not fit the model or the cluster."""


class SplitError(PlanError):
    """An op or a tensor cannot be split as asked."""


class InfeasiblePlan(PlanError):
    """No schedule fits the limits; ``details`` names those in conflict."""


class ScheduleError(SuperscalerError):
    """A scheduling problem or an order is malformed."""


class CheckError(SuperscalerError):
    """A plan is proven wrong."""


class PlanFileError(SuperscalerError):
    """A plan file is truncated, edited, or of another version."""


class ClusterError(SuperscalerError):
    """A cluster description is wrong or too small."""


class ProfileError(SuperscalerError):
    """A profile is missing, broken, or of another machine."""


class UsageError(SuperscalerError):
    """An unknown name, option or argument."""


class CheckpointError(SuperscalerError):
    """A checkpoint does not fit the plan, or could not be written."""


class VirtualMemoryError(SuperscalerError):
    """Base of the errors of ``runtime.memory``."""


class OutOfMemory(VirtualMemoryError):
    """The pool's budget, or the machine, has no more memory; the owner that asked is left as it was."""


class UseAfterFree(VirtualMemoryError):
    """A freed vTensor was used."""


class BackendUnavailable(VirtualMemoryError):
    """The memory backend cannot run here (no driver, a driver too old, no memfd)."""


class RunError(SuperscalerError):
    """A job failed while running."""


class InputError(RunError):
    """Inputs of another shape, dtype or count than the plan's."""


class NonFiniteLoss(RunError):
    """The loss of a step is NaN or infinite, and the job was launched with ``nan="raise"``."""


class WorkerError(RunError):
    """A worker died or failed; the message gives its index and its last task."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` or the list of the known names, for the hint of a :class:`UsageError`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "one of " + ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
