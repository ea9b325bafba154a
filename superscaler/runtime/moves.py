"""What tasks and communication take where a plan has them: after what comes before them, on workers that come together.

A crew of workers runs the Programs of a plan, one role after the other, all of them the same one. Collectives are
carried out in groups of the crew, and every message goes to a neighbour in it, which keeps the crew in step. Repeated
by itself, on a processor that does nothing else, all of this takes less than it takes there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, perf_counter_ns

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.ir.layout import PartialKind
from superscaler.ir.plan import Plan
from superscaler.ir.program import Collective, Program, Recv, Send
from superscaler.runtime.comm import Comm, Group, Handle, Key
from superscaler.runtime.distributed import DistributedComm
from superscaler.runtime.execution import Execution
from superscaler.runtime.gaps import Gap, Times, course, gaps
from superscaler.runtime.mail import neighbours
from superscaler.runtime.rehearsal import ALONE, OVER, Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.keys import Keys

LEAST = 1.5  # seconds that the runs of a Program take together
_RUNS = (3, 40)  # how many there are
Body = tuple[str, list[Key]]  # an item: its key, empty if it does not compute; its collectives
QUANTILES = 20
"""How many lengths stand for all that something was seen to take, each for as many."""


class Measured(msgspec.Struct, frozen=True):
    """Seconds. ``moves``: of collectives by key, with their waiting; ``blocks``: of task bodies by key, without the
    collectives in them, QUANTILES of them from short to long; ``gaps``: between two tasks of a worker, by the key of a
    :class:`~superscaler.runtime.gaps.Gap`, without waiting for peers; ``post``: of that, one end of a communication.

    These two are medians: where all of the crew want a processor at once, which a plan's workers do not, some wait
    long."""

    moves: dict[str, float]
    blocks: dict[str, list[float]]
    gaps: dict[str, float]
    post: float


def measure_moves(plan: Plan, worker: int, workers: int, *, least: float = LEAST, limit: float) -> Measured:
    """What the tasks and the communication of ``plan`` take in a crew of at most ``workers``.

    Called by each of ``workers`` processes at once, which must be connected; the same for all of them. ``least``:
    seconds that each Program is run; ``limit``: seconds that a wait may take.
    """
    comm, found = crew_comm(plan, worker, workers, limit), Found()
    for name, entry in plan.entries.items():
        for program in entry.programs:
            keys = Keys(plan, entry, program)
            meetings = {at: key for at, key in keyed(keys).items() if int(key.split()[1]) <= workers}
            items = bodies(keys)
            if not _communicates(program):
                continue
            in_place = InPlace(comm, worker, workers)
            mine = make_worker(plan, program.workers[0], in_place, WorkerOptions("cpu"))
            execution = mine.entries[name]
            tasks = course(execution)
            try:
                if not found.knows(meetings, items, tasks):
                    for _ in _runs(in_place, execution, least):
                        found.note(in_place, execution, meetings, items, tasks)
            finally:
                mine.close()
    return found.measured(worker, workers)


@dataclass
class Found:
    """What one process of the crew has seen, in seconds."""

    moves: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    blocks: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    gaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    posts: list[float] = field(default_factory=list[float])
    waits: list[float] = field(default_factory=list[float])

    def knows(self, meetings: dict[Key, str], items: list[Body], tasks: list[Gap]) -> bool:
        """Whether all of a Program has been seen."""
        wanted, between = {key for key, _ in items if key}, {gap.key for gap in tasks[1:]}
        known = {*meetings.values()} <= self.moves.keys() and wanted <= self.blocks.keys()
        return known and between <= self.gaps.keys()

    def note(
        self, run: InPlace, execution: Execution, meetings: dict[Key, str], items: list[Body], tasks: list[Gap]
    ) -> None:
        """Take down the last run of a Program."""
        for key, seconds in _by_key(run.seconds, meetings).items():
            self.moves[key].append(seconds)
        times = execution.clock.times()
        for (key, met), (start, end) in zip(items, times, strict=True):
            if key:
                self.blocks[key].append((end - start) / 1e9 - sum(run.seconds.get(at, 0.0) for at in met))
        for gap, took in gaps(tasks, times, sorted(run.waits + run.aside)):
            self.gaps[gap.key].append(took)
            if gap.posts:
                self.posts.append(took / len(gap.posts))
        self.waits += [(end - start) / 1e9 for start, end in run.waits]

    def measured(self, worker: int, workers: int) -> Measured:
        """What all of the crew have seen."""
        over = _over(self.waits)
        between = {key: [took + int(key.split()[1]) * over for took in times] for key, times in self.gaps.items()}
        post = median(self.posts) + over if self.posts else 0.0
        return Measured(
            {key: median(times) for key, times in self.moves.items()},
            {key: quantiles(_of_all(times, worker, workers)) for key, times in self.blocks.items()},
            {key: median(_of_all(times, worker, workers)) for key, times in between.items()},
            median(_of_all([post], worker, workers)),
        )


def courses(plan: Plan, name: str) -> list[list[Gap]]:
    """How a worker of every role goes through an entry of the plan."""
    found: list[list[Gap]] = []
    for program in plan.entries[name].programs:
        worker = make_worker(plan, program.workers[0], ALONE, WorkerOptions("cpu"))
        try:
            found.append(course(worker.entries[name]))
        finally:
            worker.close()
    return found


def bodies(keys: Keys) -> list[Body]:
    """The items of a Program."""
    found: list[Body] = []
    for item in keys.program.order:
        computes = keys.program.blocks[item.block].lane == "compute"
        met = [(comm, item.microbatch) for comm in keys.meetings(item)]
        found.append((keys.block(item.block, item.microbatch) if computes else "", met))
    return found


def _over(waits: Sequence[float]) -> float:
    """What waiting takes where nothing is left to wait for: the lower quartile."""
    return sorted(waits)[len(waits) // 4] if waits else 0.0


def quantiles(times: Sequence[float]) -> list[float]:
    """The means of equal parts of the sorted times: together their mean, what seldom happens included."""
    parts = torch.tensor(sorted(times), dtype=torch.float64).repeat_interleave(QUANTILES).view(QUANTILES, -1)
    return parts.mean(1).tolist()


def _of_all(mine: Sequence[float], worker: int, workers: int) -> list[float]:
    """What all of the crew have, one after the other: as many of each."""
    rows = torch.zeros(workers, len(mine), dtype=torch.float64)
    rows[worker] = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(rows)
    return rows.flatten().tolist()


def _communicates(program: Program) -> bool:
    steps = (step for block in program.blocks for step in block.steps)
    return any(isinstance(step, Send | Recv | Collective) for step in steps)


def collectives(plan: Plan) -> set[str]:
    """The keys of all collectives of a plan."""
    programs = ((entry, program) for entry in plan.entries.values() for program in entry.programs)
    return {key for entry, program in programs for key in keyed(Keys(plan, entry, program)).values()}


def keyed(keys: Keys) -> dict[Key, str]:
    """The collectives of a Program: (number in the plan, micro-batch) -> key."""
    return {(comm, item.microbatch): key for item in keys.program.order for comm, key in keys.meetings(item).items()}


def crew_comm(plan: Plan, worker: int, workers: int, limit: float) -> DistributedComm:
    """Communication between a crew, with a group for every number of ways, aligned to it, and mailboxes for all that
    two neighbours can tell each other."""
    ways = sorted({int(key.split()[1]) for key in collectives(plan)})
    groups = [tuple(range(first, first + n)) for n in ways for first in range(0, workers - n + 1, n)]
    keys = sorted({key for entry in plan.entries.values() for program in entry.programs for key in messages(program)})
    most = max(entry.microbatches for entry in plan.entries.values())
    mail = neighbours(worker, workers, keys)
    return DistributedComm(worker, limit=limit, groups=groups, microbatches=most, mail=mail)


def messages(program: Program) -> set[Key]:
    """The keys of all messages that a Program sends or receives."""
    found: set[Key] = set()
    for item in program.order:
        steps = program.blocks[item.block].steps
        found |= {(step.comm, item.microbatch) for step in steps if isinstance(step, Send | Recv)}
    return found


def _runs(in_place: InPlace, execution: Execution, least: float) -> Iterable[None]:
    """Run the entry, as often in every process of the crew, so that each run is there to be looked at."""
    in_place.run([execution])
    start = perf_counter()
    in_place.run([execution])
    fewest, most = _RUNS
    count = torch.tensor(min(most, max(fewest, round(least / (perf_counter() - start)))))
    dist.broadcast(count, 0)
    for _ in range(int(count)):
        in_place.forget()
        in_place.run([execution])
        yield


def _by_key(times: dict[Key, float], keys: dict[Key, str]) -> dict[str, float]:
    """The mean by key in one run."""
    found: dict[str, list[float]] = defaultdict(list)
    for at, seconds in times.items():
        found[keys[at]].append(seconds)
    return {key: sum(each) / len(each) for key, each in found.items()}


class _Waited:
    """A communication that takes down when it was waited for."""

    def __init__(self, handle: Handle, waits: Times) -> None:
        self.posted, self.handle, self.waits = handle.posted, handle, waits

    def ready(self) -> bool:
        return self.handle.ready()

    def wait(self) -> None:
        start = perf_counter_ns()
        self.handle.wait()
        self.waits.append((start, perf_counter_ns()))


class InPlace(Rehearsal):
    """A rehearsal whose communication is carried out within the crew: collectives in groups of the same size, timed,
    messages between neighbours.

    ``seconds``: what the collectives of a run took, by number and micro-batch. From when to when, in nanoseconds:
    ``waits``, messages were waited for; ``aside``, something was done that a plan's workers do not do. A crew that
    groups do not divide leaves the last of it alone.
    """

    def __init__(self, comm: Comm, worker: int, workers: int) -> None:
        super().__init__(comm)
        self.worker, self.workers = worker, workers
        self.seconds: dict[Key, float] = defaultdict(float)
        self.waits: Times = []
        self.aside: Times = []
        self.turn = 0
        self._spare: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def form(self, workers: int) -> None:
        """From now on the first so many communicate, however much each of them has done before."""
        self.workers, self.turn = workers, 0

    def forget(self) -> None:
        """What the last run took."""
        for seen in (self.seconds, self.waits, self.aside):
            seen.clear()

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle | None:
        gives, other = self._end()
        if other is None:
            return None
        return self._post(gives, tensor if gives else self._room(tensor), other, key)

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        gives, other = self._end()
        if gives or other is None:  # nothing comes
            self._clear(tensor)
        handle = None if other is None else self._post(gives, tensor, other, key)
        return OVER if handle is None else handle

    def _end(self) -> tuple[bool, int | None]:
        """Whichever end of a message it is: by turns it goes up to one neighbour, or comes from the other."""
        self.turn += 1
        gives = (self.worker + self.turn) % 2 == 0
        other = self.worker + (1 if gives else -1)
        if not 0 <= other < self.workers:
            return gives, None if self.workers % 2 else other % self.workers
        return gives, other

    def _post(self, gives: bool, tensor: Tensor, other: int, key: Key) -> Handle | None:
        if not gives:
            return _Waited(self.comm.recv(tensor, other, key), self.waits)
        handle = self.comm.send(tensor, other, key)
        return None if handle is None else _Waited(handle, self.waits)

    def _room(self, tensor: Tensor) -> Tensor:
        """For what comes instead of ``tensor``, made once: a worker that posts makes none."""
        spare = self._spare.get((tensor.shape, tensor.dtype))
        if spare is None:
            spare = self._spare[tensor.shape, tensor.dtype] = torch.empty_like(tensor)
        return spare

    def _clear(self, tensor: Tensor) -> None:
        start = perf_counter_ns()
        tensor.zero_()
        self.aside.append((start, perf_counter_ns()))

    def _group(self, ways: int) -> Group:
        first = self.worker // ways * ways
        return tuple(range(first, first + ways)) if first + ways <= self.workers else ()

    def _timed(self, key: Key, post: Callable[[], Handle]) -> Handle:
        number, microbatch = key[0], key[1] if key[1] >= 0 else -1 - key[1]  # the second round of one that has two
        start = perf_counter()
        post().wait()
        self.seconds[number, microbatch] += perf_counter() - start
        return OVER

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        crew = self._group(len(group))
        if not crew:
            return super().all_reduce(tensor, kind, group, key)
        return self._timed(key, lambda: self.comm.all_reduce(tensor, kind, crew, key))

    def reduce_scatter(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        crew = self._group(len(group))
        if not crew:
            return super().reduce_scatter(out, tensor, kind, group, key)
        return self._timed(key, lambda: self.comm.reduce_scatter(out, tensor, kind, crew, key))

    def all_gather(self, out: Tensor, tensor: Tensor, group: Group, key: Key) -> Handle:
        crew = self._group(len(group))
        if not crew:
            return super().all_gather(out, tensor, group, key)
        return self._timed(key, lambda: self.comm.all_gather(out, tensor, crew, key))

    def all_to_all(
        self, out: Tensor, tensor: Tensor, taken: list[int], given: list[int], group: Group, key: Key
    ) -> Handle:
        crew = self._group(len(group))
        if not crew:
            return super().all_to_all(out, tensor, taken, given, group, key)
        # All of the crew are the same worker: what one gives is what another takes only if all parts are equal.
        out.zero_()
        size = min(out.numel(), tensor.numel()) // len(crew)
        each, whole = [size] * len(crew), size * len(crew)
        return self._timed(key, lambda: self.comm.all_to_all(out[:whole], tensor[:whole], each, each, crew, key))
