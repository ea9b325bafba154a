"""What workers of this machine do to each other: what passes between them, and how much longer tasks take when several
compute at once. One process per worker; all measure together.

Run as a program (``python -m superscaler.runtime.crowd WORKER PORT PLAN``) it is one of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
import torch
import torch.distributed as dist

from superscaler.ir import plan_file
from superscaler.ir.plan import Plan
from superscaler.runtime.comm import Key
from superscaler.runtime.distributed import connect, disconnect
from superscaler.runtime.execution import Execution
from superscaler.runtime.moves import Body, InGroups, bodies, crew_comm, keyed, measure_moves
from superscaler.runtime.processes import MOST, together
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.keys import Keys

_ROUND = 0.4  # seconds in which a number of workers compute together
_FEWEST = 3  # runs in it
_LIMIT = 300.0  # seconds for all of it


class Crowd(msgspec.Struct, frozen=True):
    """``moves``: seconds of collectives by key; ``post``: of a worker's own time that one end of a communication takes;
    ``slowdown``: by how many workers compute at once."""

    moves: dict[str, float]
    post: float
    slowdown: dict[int, float]


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


# --- in each process --------------------------------------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True):
    """Seconds of a run: ``bodies`` of its tasks; ``moves``: the collectives in them, by key."""

    bodies: float
    moves: dict[str, float]

    @classmethod
    def typical(cls, each: Sequence[Seen]) -> Seen:
        """The medians; of a collective, by those that groups did not leave alone."""
        keys = {key for seen in each for key in seen.moves}
        moves = {key: median(seen.moves[key] for seen in each if key in seen.moves) for key in keys}
        return cls(median(seen.bodies for seen in each), moves)


class Sharing(msgspec.Struct, frozen=True):
    """What it costs to share cores. ``tasks``: how many times longer tasks take, by how many workers compute;
    ``moves``: how many times longer the whole crew's collectives."""

    tasks: dict[int, float]
    moves: float

    @classmethod
    def of(cls, seen: Mapping[int, Seen]) -> Sharing:
        """From runs by one worker, by the whole crew, and by numbers between.

        A task is its body and its collectives, in which who waits leaves its core to others: so it is the two together
        that take longer by a factor. Where a collective has the fewest members, it is said to take as many times longer
        than alone as the bodies do.
        """
        alone, whole = dict[str, float](), seen[max(seen)]
        for _, here in sorted(seen.items()):
            bodies = here.bodies / seen[1].bodies if seen[1].bodies else 1.0
            alone |= {key: seconds / bodies for key, seconds in here.moves.items() if key not in alone}
        tasks: dict[int, float] = {}
        for busy, here in sorted(seen.items()):
            one = seen[1].bodies + sum(alone[key] for key in here.moves)
            tasks[busy] = max(1.0, (here.bodies + sum(here.moves.values())) / one) if one else 1.0
        least = sum(alone[key] for key in whole.moves)
        return cls(tasks, sum(whole.moves.values()) / least if least else tasks[max(seen)])


def _main(worker: int, port: int, path: str) -> None:
    plan = plan_file.load(path, Plan)
    workers = min(plan.workers, MOST)
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    connect(worker, workers, "127.0.0.1", port, device=torch.device("cpu"), limit=_LIMIT)
    try:
        with torch.no_grad():
            sharing = Sharing.of(_together(plan, worker, workers))
            found = measure_moves(plan, worker, workers, limit=_LIMIT)
            # Simulation slows down what workers do side by side, their collectives included.
            moves = {key: taken / sharing.moves for key, taken in found.moves.items()}
    finally:
        disconnect()
    if worker == 0:
        print(msgspec.json.encode(Crowd(moves, found.post, sharing.tasks)).decode())


def _together(plan: Plan, worker: int, workers: int) -> dict[int, Seen]:
    """The first worker's part of the plan, run by 1, 2, … of the crew at once: collectives in groups of these, messages
    over at once. Two turns of it: the machine is not the same a second later."""
    name = "train" if "train" in plan.entries else next(iter(plan.entries))
    in_groups = InGroups(crew_comm(plan, worker, workers, _LIMIT), worker, workers)
    found: dict[int, list[Seen]] = {n: [] for n in (1, 2, 3, 4, 6, 8, 12, 16, workers) if n <= workers}
    mine = make_worker(plan, 0, in_groups, WorkerOptions("cpu"))
    execution = mine.entries[name]
    items = bodies(Keys(plan, plan.entries[name], execution.program))
    keys = keyed(Keys(plan, plan.entries[name], execution.program))
    try:
        for busy in sorted(found) * 2:
            in_groups.workers = busy
            for _ in _runs(in_groups, execution, worker < busy):
                found[busy].append(_seen(in_groups, execution, items, keys))
    finally:
        mine.close()
    return _typical(found, workers)


def _runs(in_groups: InGroups, execution: Execution, takes_part: bool) -> Iterator[None]:
    """Runs of an entry by some of the crew, as many by each, while the others wait."""
    start = perf_counter()
    if takes_part:
        in_groups.run([execution])
    count = torch.tensor(max(_FEWEST, round(_ROUND / (perf_counter() - start))))
    dist.broadcast(count, 0)
    dist.barrier()
    for _ in range(int(count) if takes_part else 0):
        in_groups.seconds.clear()
        in_groups.run([execution])
        yield
    dist.barrier()


def _seen(in_groups: InGroups, execution: Execution, items: Sequence[Body], keys: Mapping[Key, str]) -> Seen:
    """The last run."""
    total, moves = 0.0, dict[str, float]()
    for (key, met), (start, end) in zip(items, execution.clock.times(), strict=True):
        if key:
            total += (end - start) / 1e9
            for at in met:
                moves[keys[at]] = moves.get(keys[at], 0.0) + in_groups.seconds.get(at, 0.0)
    return Seen(total - sum(moves.values()), {key: seconds for key, seconds in moves.items() if seconds})


def _typical(mine: dict[int, list[Seen]], workers: int) -> dict[int, Seen]:
    """Of all that the crew has seen."""
    every: list[dict[int, list[Seen]]] = [{}] * workers
    dist.all_gather_object(every, mine)
    return {busy: Seen.typical([seen for found in every for seen in found[busy]]) for busy in mine}


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
