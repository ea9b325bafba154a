"""From a plan's words to an entry that fits its devices; if none does, the changes after which one does, each tried.

``solve`` schedules without a limit first; where that is too much for a device, within the memory that is left beside
state and workspace, and, since the arena has gaps that no schedule sees, a little tighter until the whole fits. What
holds the least, micro-batches one after another, says whether that is worth the search, and is what is left after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from time import monotonic

import msgspec

from superscaler.errors import InfeasiblePlan, PlanError, ScheduleError, SplitError, UsageError
from superscaler.ir.cluster import Cluster
from superscaler.ir.entry import Entry, StateTensor
from superscaler.ir.graph import Graph, Op
from superscaler.ir.program import Program
from superscaler.ir.summary import bytes_text
from superscaler.ir.task import TaskGraph
from superscaler.plans.planner import Planner, PlanScript
from superscaler.scheduler.explain import least
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.tasks import schedule, sequential
from superscaler.transforms.assemble import assemble, with_state
from superscaler.transforms.blocks import Lowered
from superscaler.transforms.lower import lower
from superscaler.transforms.place import place

_TRIES = 5
"""How often a schedule within memory is looked for, each time in less for the gaps of its arena …"""
_TIGHTER = 0.98
"""… and a little less still."""
_PATIENCE = 60.0
"""Seconds after which no further change is tried."""
_DOUBLINGS = 3

Change = Callable[[Planner], None]
Timed = Callable[[Lowered, Mapping[int, int] | None], Entry]


@dataclass(frozen=True)
class Making:
    """What an entry is made of: a graph and what is said of it. ``train``: whether it is the one that is trained."""

    graph: Graph
    cluster: Cluster
    script: PlanScript
    train: bool = True
    seed: int = 0
    time_limit: float | None = None
    profile: Profile | None = None

    def planner(self, *changes: Change) -> Planner:
        """The graph with what the script, and then ``changes``, say of it."""
        planner = Planner(self.graph, self.cluster)
        for say in (self.script, *changes):
            said: object = say(planner)
            if callable(said):
                raise UsageError("the plan gives a plan, instead of being one", hint="call it: plan=megatron(tensor=2)")
        return planner

    def tasks(self, *changes: Change) -> TaskGraph:
        """The TaskGraph; what is not trained has no backward to recompute for or to order."""
        said = self.planner(*changes).directives()
        said.seed = self.seed
        if not self.train:
            said.recompute = frozenset()
            said.order, said.split_weight, said.before = "gpipe", False, ()
        return place(self.graph, said)

    def entry(self, tasks: TaskGraph) -> Entry:
        """The entry of ``tasks``, without state; one that "solve" orders is within the devices' memory if it can be."""
        lowered = lower(tasks)
        entry = self.timed(lowered, None)
        if tasks.order != "solve" or not self.over(entry, tasks):
            return entry
        least = self.within(lowered, self.sequential(lowered, None), self.sequential)
        if self.over(least, tasks):
            return entry
        entry = self.within(lowered, entry, self.timed)
        return least if self.over(entry, tasks) else entry

    def timed(self, lowered: Lowered, memory: Mapping[int, int] | None) -> Entry:
        """The entry, its arena of each device within ``memory``; :class:`InfeasiblePlan` if that cannot be."""
        found = schedule(lowered, self.cluster, time_limit=self.time_limit, profile=self.profile, memory=memory)
        return assemble(lowered, found)

    def sequential(self, lowered: Lowered, memory: Mapping[int, int] | None) -> Entry:
        """As :meth:`timed`, one micro-batch after another: what holds the least."""
        return assemble(lowered, sequential(lowered, self.cluster, self.profile, memory))

    def within(self, lowered: Lowered, entry: Entry, timed: Timed) -> Entry:
        """``entry`` as ``timed`` again and again until it is within the devices' memory, if it can be."""
        tasks = lowered.tasks
        room: dict[int, int] = {}
        for _ in range(_TRIES):
            programs = with_whole_state(entry, tasks).programs
            if not over(programs, self.cluster):
                break
            for program in programs:
                for worker in program.workers:
                    there = self.cluster.device(worker).memory - (program.peak - program.arena)
                    tighter = _TIGHTER * there / program.arena if worker in room and program.arena > there else 1.0
                    room[worker] = int(room.get(worker, there) * tighter)
            try:
                entry = timed(lowered, room)
            except InfeasiblePlan:
                break
        return entry

    def over(self, entry: Entry, tasks: TaskGraph) -> list[Program]:
        """The programs that need more memory, with the whole state, than a device of theirs has."""
        return over(with_whole_state(entry, tasks).programs, self.cluster)

    def fits(self, tasks: TaskGraph) -> bool:
        """Whether the entry fits, if "solve" orders it in the order that holds the least."""
        lowered = lower(tasks)
        if tasks.order != "solve":
            return not self.over(self.timed(lowered, None), tasks)
        least = self.within(lowered, self.sequential(lowered, None), self.sequential)
        return not self.over(least, tasks)


def with_whole_state(entry: Entry, tasks: TaskGraph) -> Entry:
    """The entry with its graph's whole state in every program's peak."""
    state = tuple(
        StateTensor(
            t.name, t.shape, t.dtype, t.kind, tasks.homes[t.name],
            memory="host" if t.name in tasks.hosted else "device",
        )
        for t in tasks.graph.state()
    )  # fmt: skip
    return with_state(entry, state, tasks.space)


def over(programs: Sequence[Program], cluster: Cluster) -> list[Program]:
    """The programs that need more memory than a device of theirs has."""
    return [p for p in programs if p.peak > min(cluster.device(worker).memory for worker in p.workers)]


# --- why nothing fits ------------------------------------------------------------------------------------------------


def infeasible(making: Making, name: str, entry: Entry) -> InfeasiblePlan:
    """The error for an entry (its state counted) that does not fit: where, limits in conflict, what would help."""
    worst = max(over(entry.programs, making.cluster), key=lambda program: program.peak)
    worker = min(worst.workers, key=lambda w: making.cluster.device(w).memory)
    limit = making.cluster.device(worker).memory
    until, found = monotonic() + _PATIENCE, list[tuple[str, str]]()
    for change in smallest_changes(making, entry, worst):
        found.append(change)
        if monotonic() > until:
            break
    limits = dict.fromkeys((f"memory[{worker}]", *(relieved for relieved, _ in found if relieved)))
    return InfeasiblePlan(
        f"no schedule fits worker {worker}'s {bytes_text(limit)}",
        f"peak {bytes_text(worst.peak)} in entry {name!r}, {bytes_text(worst.arena)} of it between tasks",
        f"limits in conflict: {', '.join(limits)}",
        hint=", or ".join(text for _, text in found) or "more devices, or devices with more memory",
    )


def smallest_changes(making: Making, entry: Entry, worst: Program) -> Iterator[tuple[str, str]]:
    """(the limit it relieves, what to do): of each sort the smallest change after which the whole was seen to fit."""
    need = _least_memory(making, max(program.peak for program in over(entry.programs, making.cluster)))
    yield "", f"{bytes_text(need)} of memory per device"
    if not making.train:
        return
    planner = making.planner()
    order, count = planner.directives().order, planner.directives().microbatches
    if order != "solve" and _helps(making, lambda p: p.order("solve")):
        yield f"schedule={order}", "schedule=solve"
    if more := _least_microbatches(making, count):
        yield f"microbatches={count}", f"microbatches={more}"
    for what, again in _recomputations(planner, worst):
        if _helps(making, lambda p, again=again: p.recompute(again)):
            yield "", f"recompute {what}"
            break


def _least_microbatches(making: Making, count: int) -> int | None:
    """The least number above ``count`` that was seen to help when one less did not."""

    def enough(number: int) -> bool:
        return _helps(making, lambda p: p.microbatches(number))

    steps = (least(count * 2**power, count * 2 ** (power + 1), enough) for power in range(_DOUBLINGS))
    return next(filter(None, steps), None)


def _recomputations(planner: Planner, worst: Program) -> Iterator[tuple[str, list[Op]]]:
    """What to make again: the layers of one stage of the fullest worker, of all its stages, of all stages."""
    stages = sorted({block.stage for block in worst.blocks if block.kind == "forward"})
    specs = planner.directives().stages
    for some in (*([stage] for stage in stages if len(stages) > 1), stages):
        ops = {name for stage in some for name in specs[stage].ops}
        yield f"stage {' and '.join(map(str, some))}", [op for op in planner.inner() if op.name in ops]
    yield "all stages", planner.inner()


def _helps(making: Making, change: Change) -> bool:
    """Whether the whole fits after the change."""
    try:
        return making.fits(making.tasks(change))
    except (PlanError, SplitError, ScheduleError, InfeasiblePlan):
        return False


def _least_memory(making: Making, enough: int) -> int:
    """The least memory per device, as it is written, with which a schedule was found; ``enough`` is known to be."""
    tasks = making.tasks()
    if tasks.order != "solve":
        return _as_written(enough)
    lowered = lower(tasks)
    least = making.sequential(lowered, None)
    low, high = min(kind.memory for kind in making.cluster.kinds), _as_written(enough)
    while (middle := _as_written((low + high) // 2)) < high:
        roomier = replace(making, cluster=_with_memory(making.cluster, middle))
        if roomier.over(roomier.within(lowered, least, roomier.sequential), tasks):
            low = middle
        else:
            high = middle
    return high


def _as_written(count: int) -> int:
    """The least number of bytes from ``count`` on that its text, of three digits, says in full."""
    scale = next((scale for scale in (2**40, 2**30, 2**20, 2**10) if count >= scale), 1)
    step = scale / 10 ** max(0, 3 - len(str(count // scale)))
    return int(ceil(count / step) * step)


def _with_memory(cluster: Cluster, memory: int) -> Cluster:
    """``cluster`` with at least ``memory`` bytes on every device."""
    kinds = tuple(msgspec.structs.replace(kind, memory=max(memory, kind.memory)) for kind in cluster.kinds)
    return msgspec.structs.replace(cluster, kinds=kinds)
