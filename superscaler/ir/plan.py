"""The Plan: entries over one layout of state; a file that is data, never code."""

from __future__ import annotations

from pathlib import Path

from superscaler.ir import plan_file
from superscaler.ir.check import check
from superscaler.ir.entry import Certificate, Contents, Entry, StateTensor
from superscaler.ir.summary import summary


class Plan(Contents, frozen=True, dict=True):
    """A verified, executable parallelization plan. Made by ``compile`` or ``Plan.load``, both of which check it."""

    def save(self, path: str | Path) -> None:
        """Write the plan to a file: text, self-contained, whole or not at all. Raises :class:`PlanFileError`."""
        plan_file.save(self, path)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """The plan in a file, checked. Runs no code from it.

        Raises :class:`PlanFileError` for a file that is truncated, edited or of a newer version, and
        :class:`CheckError` for a plan that is proven wrong.
        """
        plan = plan_file.load(path, Plan)
        check(plan)
        return plan

    def __str__(self) -> str:
        return str(summary(self))


__all__ = ["Certificate", "Entry", "Plan", "StateTensor"]
