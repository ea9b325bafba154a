"""What collectives cost where a plan has them: after what comes before them, with workers that do not arrive together.

A crew of workers runs the Programs of a plan, one role after the other, all of them the same one: sends and receives
are rehearsed, collectives are carried out. Repeated by itself, a collective takes less than it takes there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median
from time import perf_counter

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.ir.layout import PartialKind
from superscaler.ir.plan import Plan
from superscaler.ir.program import Collective, Program
from superscaler.runtime.comm import Comm, Group, Handle, Key
from superscaler.runtime.distributed import DistributedComm
from superscaler.runtime.execution import Execution
from superscaler.runtime.rehearsal import OVER, Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.keys import Keys, move_key

_LEAST = 1.5  # seconds that the runs of a Program take together
_RUNS = (3, 40)  # how many there are


def measure_moves(plan: Plan, worker: int, workers: int, *, limit: float) -> dict[str, float]:
    """Seconds of every distinct collective over at most ``workers``, by key: of its typical run, with its waiting.

    Called by each of ``workers`` processes at once, which must be connected. ``limit``: seconds that a wait may take.
    """
    comm = _comm(plan, worker, workers, limit)
    found: dict[str, list[float]] = {}
    for name, entry in plan.entries.items():
        for program in entry.programs:
            keys = _keyed(Keys(plan, entry, program))
            wanted = {key for key in keys.values() if 1 < int(key.split()[1]) <= workers}
            if wanted <= found.keys():
                continue
            in_place = InPlace(comm, worker, workers)
            mine = make_worker(plan, program.workers[0], in_place, WorkerOptions("cpu"))
            try:
                for times in _runs(in_place, mine.entries[name]):
                    for key, seconds in _by_key(times, keys).items():
                        found.setdefault(key, []).append(seconds)
            finally:
                mine.close()
    return {key: median(times) for key, times in found.items()}


def collectives(plan: Plan) -> set[str]:
    """The keys of all collectives of a plan."""
    programs = ((entry, program) for entry in plan.entries.values() for program in entry.programs)
    return {key for entry, program in programs for key in _keyed(Keys(plan, entry, program)).values()}


def _keyed(keys: Keys) -> dict[Key, str]:
    """The collectives of a Program: (number in the plan, micro-batch) -> key."""
    program: Program = keys.program
    found: dict[Key, str] = {}
    for item in program.order:
        block = program.blocks[item.block]
        for step in block.steps:
            if isinstance(step, Collective):
                group, size = keys.moved(step, block, item.microbatch)
                if len(group) > 1:
                    found[step.comm, item.microbatch] = move_key(step.kind, len(group), size)
    return found


def _comm(plan: Plan, worker: int, workers: int, limit: float) -> DistributedComm:
    """Communication between the crew, with a group for every number of ways, aligned to it."""
    entries = {name: msgspec.structs.replace(entry, groupings=()) for name, entry in plan.entries.items()}
    comm = DistributedComm(msgspec.structs.replace(plan, entries=entries, workers=workers), worker, limit=limit)
    for ways in sorted({int(key.split()[1]) for key in collectives(plan)}):
        for first in range(0, workers - ways + 1, ways):
            group = tuple(range(first, first + ways))
            if group not in comm.groups:
                comm.groups[group] = dist.new_group(list(group), timeout=comm.limit)
    return comm


def _runs(in_place: InPlace, execution: Execution) -> list[dict[Key, float]]:
    """What each collective took in every run; of as many runs in every process of the crew."""
    in_place.run([execution])
    start = perf_counter()
    in_place.run([execution])
    least, most = _RUNS
    count = torch.tensor(min(most, max(least, round(_LEAST / (perf_counter() - start)))))
    dist.broadcast(count, 0)
    found: list[dict[Key, float]] = []
    for _ in range(int(count)):
        in_place.seconds.clear()
        in_place.run([execution])
        found.append(dict(in_place.seconds))
    return found


def _by_key(times: dict[Key, float], keys: dict[Key, str]) -> dict[str, float]:
    """The mean by key in one run."""
    found: dict[str, list[float]] = defaultdict(list)
    for at, seconds in times.items():
        found[keys[at]].append(seconds)
    return {key: sum(each) / len(each) for key, each in found.items()}


class InPlace(Rehearsal):
    """A rehearsal whose collectives are carried out, in groups of the crew of the same size, and timed.

    ``seconds``: what those of a run took, by number and micro-batch. A crew that groups do not divide leaves the last
    of it alone.
    """

    def __init__(self, comm: Comm, worker: int, workers: int) -> None:
        super().__init__(comm)
        self.worker, self.workers = worker, workers
        self.seconds: dict[Key, float] = defaultdict(float)

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
