"""What workers of this machine do to each other: what passes between them, and how much longer tasks take when several
compute at once. One process per worker; all measure together.

Run as a program (``python -m superscaler.runtime.crowd WORKER PORT PLAN``) it is one of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import msgspec
import torch
import torch.distributed as dist

from superscaler.ir import plan_file
from superscaler.ir.plan import Plan
from superscaler.runtime.distributed import connect, disconnect
from superscaler.runtime.moves import measure_moves
from superscaler.runtime.processes import MOST, together
from superscaler.runtime.rehearsal import ALONE, Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker

_ROUND = 0.8  # seconds in which a number of workers compute together
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


def _main(worker: int, port: int, path: str) -> None:
    plan = plan_file.load(path, Plan)
    workers = min(plan.workers, MOST)
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    connect(worker, workers, "127.0.0.1", port, device=torch.device("cpu"), limit=_LIMIT)
    try:
        with torch.no_grad():
            seconds = _together(plan, worker, workers)
            slowdown = {busy: max(1.0, taken / seconds[1]) if seconds[1] else 1.0 for busy, taken in seconds.items()}
            # Simulation slows down what workers do side by side, their collectives included.
            found = measure_moves(plan, worker, workers, limit=_LIMIT)
            moves = {key: taken / slowdown[workers] for key, taken in found.moves.items()}
    finally:
        disconnect()
    if worker == 0:
        print(msgspec.json.encode(Crowd(moves, found.post, slowdown)).decode())


def _entry(plan: Plan) -> str:
    return "train" if "train" in plan.entries else next(iter(plan.entries))


def _together(plan: Plan, worker: int, workers: int) -> dict[int, float]:
    """Seconds of the first worker's part of the plan, rehearsed in 1, 2, … processes at once."""
    name = _entry(plan)
    rehearsal = Rehearsal(ALONE)
    mine = make_worker(plan, 0, rehearsal, WorkerOptions("cpu"))
    found: dict[int, float] = {}
    try:
        for _ in range(2):
            rehearsal.run([mine.entries[name]])
        for busy in sorted({n for n in (1, 2, 3, 4, 6, 8, 12, 16, workers) if n <= workers}):
            dist.barrier()
            found[busy] = _rate(lambda: rehearsal.run([mine.entries[name]])) if worker < busy else 0.0
            dist.barrier()
    finally:
        mine.close()
    return found


def _rate(run: Callable[[], None]) -> float:
    """Seconds of one run, while others do the same for as long."""
    start, times = perf_counter(), 0
    while perf_counter() - start < _ROUND:
        run()
        times += 1
    return (perf_counter() - start) / times


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
