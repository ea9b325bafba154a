"""What workers of this machine do to each other: what passes between them, and how much longer tasks take when several
compute at once. One process per worker; all measure together.

Run as a program (``python -m superscaler.runtime.crowd WORKER PORT PLAN``) it is one of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter

import msgspec
import torch
import torch.distributed as dist

from superscaler.ir import plan_file
from superscaler.ir.plan import Plan
from superscaler.runtime.distributed import connect, disconnect
from superscaler.runtime.execution import Execution
from superscaler.runtime.moves import InPlace, bodies, crew_comm, keyed, measure_moves
from superscaler.runtime.processes import MOST, together
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.keys import Keys

_ROUND = 0.4  # seconds in which a number of workers compute together
_FEWEST = 3  # runs in it
_TURNS = 2, 4  # of every number, at least and at most: the machine is not the same a second later
_LONG = 20.0  # seconds after which the fewest will do
_LIMIT = 300.0  # seconds for all of it


class Crowd(msgspec.Struct, frozen=True):
    """``moves``: seconds of collectives by key; ``post``: of a worker's own time that one end of a communication takes;
    ``slowdown``: by how many workers compute at once; ``bodies``: seconds of the first role's tasks, by one alone."""

    moves: dict[str, float]
    post: float
    slowdown: dict[int, float]
    bodies: float

    def leveled(self, plan: Plan, blocks: Mapping[str, float]) -> dict[str, float]:
        """Seconds of task bodies by key, all longer by the factor that makes the first role's what the crew saw.

        They were measured when the machine was faster or slower, and it is from the crew's that a slowdown counts.
        """
        _, keys = _first_role(plan)
        then = sum(blocks[key] for key, _ in bodies(keys) if key)
        factor = self.bodies / then if then else 1.0
        return {key: seconds * factor for key, seconds in blocks.items()}


def measure_crowd(plan: Plan) -> Crowd:
    """Of a plan's workers on this machine's cores. Raises :class:`RunError` if a process fails or takes too long."""
    workers = min(plan.workers, MOST)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "plan.json"
        plan_file.save(plan, path)
        found = together(
            "superscaler.runtime.crowd", workers, [str(path)], limit=_LIMIT, doing="measuring workers together"
        )
    return msgspec.json.decode(found, type=Crowd)


def _first_role(plan: Plan) -> tuple[str, Keys]:
    """What the crew runs: the name of an entry, and the keys of its first Program."""
    name = "train" if "train" in plan.entries else next(iter(plan.entries))
    return name, Keys(plan, plan.entries[name], plan.entries[name].programs[0])


# --- in each process --------------------------------------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True):
    """Seconds of a run: ``bodies`` of its tasks; ``moves``: the collectives in them, by key."""

    bodies: float
    moves: dict[str, float]

    @classmethod
    def mean(cls, each: Sequence[Seen]) -> Seen:
        """Of many runs; of a collective, by those that groups did not leave alone."""
        keys = {key for seen in each for key in seen.moves}
        moves = {key: fmean(seen.moves[key] for seen in each if key in seen.moves) for key in keys}
        return cls(fmean(seen.bodies for seen in each), moves)


class Sharing(msgspec.Struct, frozen=True):
    """What it costs to share cores. ``slowdown``: how many times longer tasks take, by how many workers compute;
    ``alone``: seconds of a run's collectives by key, as far as they take longer by the same factor."""

    slowdown: dict[int, float]
    alone: dict[str, float]

    @classmethod
    def of(cls, seen: Mapping[int, Seen]) -> Sharing:
        """From runs by one worker, by the whole crew, and by numbers between.

        A task is its body and its collectives, in which who waits leaves its core to others: so it is the two together
        that take longer by a factor. Where a collective has the fewest members, it is said to take as many times longer
        than alone as the bodies do.
        """
        alone, slowdown = dict[str, float](), dict[int, float]()
        for busy, here in sorted(seen.items()):
            longer = here.bodies / seen[1].bodies if seen[1].bodies else 1.0
            alone |= {key: seconds / longer for key, seconds in here.moves.items() if key not in alone}
            one = seen[1].bodies + sum(alone[key] for key in here.moves)
            slowdown[busy] = max(1.0, (here.bodies + sum(here.moves.values())) / one) if one else 1.0
        return cls(slowdown, alone)

    def without(self, moves: Mapping[str, float], met: Sequence[str]) -> dict[str, float]:
        """Seconds of collectives by key as far as simulation will make them longer again, from those of the whole crew.

        ``met``: the keys of a run's collectives, each as often as it is carried out.
        """
        seen = sum(moves[key] for key in met if key in self.alone)
        factor = sum(self.alone.values()) / seen if seen else 1.0 / self.slowdown[max(self.slowdown)]
        return {key: seconds * factor for key, seconds in moves.items()}


def _main(worker: int, port: int, path: str) -> None:
    plan = plan_file.load(path, Plan)
    workers = min(plan.workers, MOST)
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    connect(worker, workers, "127.0.0.1", port, device=torch.device("cpu"), limit=_LIMIT)
    name, keys = _first_role(plan)
    try:
        with torch.no_grad():
            seen = _together(plan, name, keys, worker, workers)
            found = measure_moves(plan, worker, workers, limit=_LIMIT)
    finally:
        disconnect()
    if worker == 0:
        sharing = Sharing.of(seen)
        moves = sharing.without(found.moves, _met(keys))
        print(msgspec.json.encode(Crowd(moves, found.post, sharing.slowdown, seen[1].bodies)).decode())


def _together(plan: Plan, name: str, keys: Keys, worker: int, workers: int) -> dict[int, Seen]:
    """The first role's part of an entry, run by 1, 2, … of the crew at once, its communication among these."""
    in_place = InPlace(crew_comm(plan, worker, workers, _LIMIT), worker, workers)
    found: dict[int, list[Seen]] = {n: [] for n in (1, 2, 3, 4, 6, 8, 12, 16, workers) if n <= workers}
    mine = make_worker(plan, keys.worker, in_place, WorkerOptions("cpu"))
    execution = mine.entries[name]
    try:
        for busy in _turns(sorted(found)):
            in_place.form(busy)
            for _ in _runs(in_place, execution, worker < busy):
                found[busy].append(_seen(in_place, execution, keys))
    finally:
        mine.close()
    return _mean(found, workers)


def _turns(numbers: Sequence[int]) -> Iterator[int]:
    """The numbers, again and again; as often in every process of the crew."""
    start = perf_counter()
    fewest, most = _TURNS
    for turn in range(most):
        more = torch.tensor(turn < fewest or perf_counter() - start < _LONG)
        dist.broadcast(more, 0)
        if not more:
            return
        yield from numbers


def _runs(in_place: InPlace, execution: Execution, takes_part: bool) -> Iterator[None]:
    """Runs of an entry by some of the crew, as many by each, while the others wait."""
    start = perf_counter()
    if takes_part:
        in_place.run([execution])
    count = torch.tensor(max(_FEWEST, round(_ROUND / (perf_counter() - start))))
    dist.broadcast(count, 0)
    dist.barrier()
    for _ in range(int(count) if takes_part else 0):
        in_place.forget()
        in_place.run([execution])
        yield
    dist.barrier()


def _met(keys: Keys) -> list[str]:
    """The keys of the collectives in tasks, each as often as it is carried out."""
    by = keyed(keys)
    return [by[at] for task, met in bodies(keys) if task for at in met]


def _seen(in_place: InPlace, execution: Execution, keys: Keys) -> Seen:
    """The last run."""
    total, moves, by = 0.0, dict[str, float](), keyed(keys)
    for (task, met), (start, end) in zip(bodies(keys), execution.clock.times(), strict=True):
        if task:
            total += (end - start) / 1e9
            for at in in_place.seconds.keys() & met:
                moves[by[at]] = moves.get(by[at], 0.0) + in_place.seconds[at]
    return Seen(total - sum(moves.values()), moves)


def _mean(mine: dict[int, list[Seen]], workers: int) -> dict[int, Seen]:
    """Of all that the crew has seen."""
    every: list[dict[int, list[Seen]]] = [{}] * workers
    dist.all_gather_object(every, mine)
    return {busy: Seen.mean([seen for found in every for seen in found[busy]]) for busy in mine}


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
