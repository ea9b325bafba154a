"""What a check has proven, in figures."""

from __future__ import annotations

import msgspec


class EntryReport(msgspec.Struct, frozen=True):
    """One entry: roles, tasks (items of all Programs), communications, and the largest state + arena of a worker."""

    roles: int
    tasks: int
    communications: int
    memory: int


class Report(msgspec.Struct, frozen=True):
    """The outcome of a check that found no fault. ``assumptions``: discovered rules that the proof rests on."""

    entries: dict[str, EntryReport]
    assumptions: tuple[str, ...]
    seconds: float

    @property
    def tasks(self) -> int:
        """How many tasks were checked, in all entries."""
        return sum(entry.tasks for entry in self.entries.values())

    def __str__(self) -> str:
        lines = [f"checked {self.tasks:,} tasks in {self.seconds:.2f} s: values, deadlock, memory and schedule proven"]
        for name, entry in self.entries.items():
            lines.append(
                f"  {name}: {entry.roles} roles, {entry.tasks:,} tasks, {entry.communications:,} communications, "
                f"at most {entry.memory / 2**30:.2f} GiB of state and arena"
            )
        if self.assumptions:
            lines.append(f"  assumes {len(self.assumptions)} discovered rules: " + ", ".join(self.assumptions))
        return "\n".join(lines)
