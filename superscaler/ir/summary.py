"""A plan in a few figures: what ``print(plan)`` shows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from superscaler.ir.check.capacity import state_bytes
from superscaler.ir.check.fault import workers_text
from superscaler.ir.entry import Contents, Entry
from superscaler.ir.graph import ITEMSIZE
from superscaler.ir.program import Program


class RoleSummary(msgspec.Struct, frozen=True):
    """The workers that run one Program. ``bubble``: idle share of their compute lane over the planned step;
    ``peak``: bytes of state, arena and the largest task's workspace; ``tasks``: how many a step has."""

    workers: tuple[int, ...]
    stages: tuple[int, ...]
    bubble: float
    peak: int
    tasks: int


class EntrySummary(msgspec.Struct, frozen=True):
    """One entry as planned. Times in microseconds; ``bubble`` is the mean over all workers."""

    name: str
    makespan: int
    bound: int
    gap: float
    status: str
    schedule: str
    binding: str
    microbatches: int
    bubble: float
    peak: int
    roles: tuple[RoleSummary, ...]


class Summary(msgspec.Struct, frozen=True):
    """A plan in figures. ``parameters``: how many numbers the model has; ``state``: bytes of all state, unsplit;
    ``host``: the most bytes of state that a worker keeps in its host's memory."""

    model: str
    parameters: int
    state: int
    cluster: str
    devices: int
    workers: int
    entries: tuple[EntrySummary, ...]
    assumptions: tuple[str, ...]
    host: int = 0

    def __str__(self) -> str:
        lines = [
            f"plan of {self.model} ({count_text(self.parameters)} parameters) for {self.workers} workers, "
            f"cluster {self.cluster} of {self.devices}{_idle(self.devices - self.workers)}"
        ]
        for entry in self.entries:
            lines += _entry_lines(entry)
        if self.host:
            lines.append(f"  {bytes_text(self.host)} a worker of state in host memory")
        if self.assumptions:
            lines.append(f"  rests on {len(self.assumptions)} discovered rules")
        return "\n".join(lines)


def _idle(devices: int) -> str:
    return f", {devices} idle" if devices > 0 else ""


def _entry_lines(entry: EntrySummary) -> list[str]:
    batches = f", {entry.microbatches} micro-batches" if entry.microbatches > 1 else ""
    lines = [
        f"  {entry.name}: {entry.makespan / 1e6:.4g} s a step ({entry.schedule}, {entry.status}; bound "
        f"{entry.bound / 1e6:.4g} s, gap {entry.gap:.1%}){batches}, bubble {entry.bubble:.1%}, "
        f"peak {bytes_text(entry.peak)}"
    ]
    lines += [
        f"    {workers_text(role.workers)}: stage {stages_text(role.stages)}, {role.tasks:,} tasks, "
        f"bubble {role.bubble:.1%}, peak {bytes_text(role.peak)}"
        for role in entry.roles
    ]
    return lines


def summary(plan: Contents) -> Summary:
    """The figures of a plan, from what it states."""
    parameters = [t for t in plan.state if t.kind == "parameter"]
    return Summary(
        str(plan.model.get("name", "a model")),
        sum(_numel(t.shape) for t in parameters),
        sum(_numel(t.shape) * ITEMSIZE[t.dtype] for t in plan.state),
        plan.cluster.name,
        plan.cluster.size,
        plan.workers,
        tuple(_entry(name, entry) for name, entry in plan.entries.items()),
        plan.assumptions,
        max(state_bytes(plan, "host").values(), default=0),
    )


def _entry(name: str, entry: Entry) -> EntrySummary:
    found = entry.certificate
    roles = tuple(_role(program, found.makespan) for program in entry.programs)
    workers = sum(len(role.workers) for role in roles)
    return EntrySummary(
        name,
        found.makespan,
        found.bound,
        found.gap,
        found.status,
        found.baseline_name if found.makespan == found.baseline else "solve",
        found.binding,
        entry.microbatches,
        sum(role.bubble * len(role.workers) for role in roles) / workers if workers else 0.0,
        max((role.peak for role in roles), default=0),
        roles,
    )


def _role(program: Program, makespan: int) -> RoleSummary:
    lanes = [block.lane for block in program.blocks]
    busy = sum(item.end - item.start for item in program.order if lanes[item.block] == "compute")
    return RoleSummary(
        program.workers,
        tuple(sorted({block.stage for block in program.blocks})),
        1.0 - busy / makespan if makespan else 0.0,
        program.peak,
        len(program.order),
    )


def _numel(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def count_text(count: int) -> str:
    """A number in short: ``3.28 M``, ``175 B``."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return str(count)


def bytes_text(count: float) -> str:
    """A number of bytes with a fitting unit: ``41.3 MiB``, ``12.4 GiB``."""
    for unit, scale in (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:.0f} B"


def stages_text(stages: Sequence[int]) -> str:
    """Stages as ``3`` or ``0, 7``."""
    return ", ".join(map(str, stages)) or "-"
