"""What workers of this machine do to each other: collectives between them, and how much longer tasks take when several
compute at once. One process per worker; all measure together.

Run as a program (``python -m superscaler.runtime.crowd WORKER PORT PLAN``) it is one of them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from superscaler.errors import RunError
from superscaler.ir import plan_file
from superscaler.ir.plan import Plan
from superscaler.ir.program import Collective
from superscaler.runtime.comm import Comm, Group
from superscaler.runtime.distributed import DistributedComm, connect, disconnect, serve
from superscaler.runtime.rehearsal import Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.keys import Keys, move_key

MOST = 16  # workers that are measured together
_ROUND = 0.8  # seconds in which a number of workers compute together
_TIMES = 22  # repetitions of a collective
_WORK = 0.005  # seconds of work between two collectives, at most
_LIMIT = 300.0  # seconds for all of it


class Crowd(msgspec.Struct, frozen=True):
    """``moves``: seconds of collectives by key; ``slowdown``: by how many workers compute at once."""

    moves: dict[str, float]
    slowdown: dict[int, float]


def measure_crowd(plan: Plan) -> Crowd:
    """Of a plan's workers on this machine's cores. Raises :class:`RunError` if a process fails or takes too long."""
    workers = min(plan.workers, MOST)
    store = serve(workers, limit=_LIMIT)
    with tempfile.TemporaryDirectory() as place:
        plan_file.save(plan, Path(place) / "plan.json")
        command = [sys.executable, "-m", "superscaler.runtime.crowd"]
        crew = [
            subprocess.Popen(
                [*command, str(i), str(store.port), str(Path(place) / "plan.json")],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for i in range(workers)
        ]  # fmt: skip
        try:
            found = [process.communicate(timeout=_LIMIT) for process in crew]
        except subprocess.TimeoutExpired as e:
            raise RunError(f"measuring workers together took more than {_LIMIT:g} s") from e
        finally:
            for process in crew:
                process.kill()
                process.wait()
    if any(process.returncode for process in crew):
        lines = next(e for (_, e), p in zip(found, crew, strict=True) if p.returncode)
        raise RunError("measuring workers together failed", *lines.decode(errors="replace").strip().splitlines()[-1:])
    return msgspec.json.decode(found[0][0].strip().splitlines()[-1], type=Crowd)


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
            moves = _moves(plan, worker, workers, _Between(_shared(seconds[1] / max(1, _count(plan)))), slowdown)
    finally:
        disconnect()
    if worker == 0:
        print(msgspec.json.encode(Crowd(moves, slowdown)).decode())


def collectives(plan: Plan) -> dict[tuple[str, int, int], str]:
    """The distinct collectives of a plan as (kind, ways, bytes) -> dtype."""
    found: dict[tuple[str, int, int], str] = {}
    for entry in plan.entries.values():
        for program in entry.programs:
            keys = Keys(plan, entry, program)
            for item in program.order:
                block = program.blocks[item.block]
                for step in (s for s in block.steps if isinstance(s, Collective)):
                    group, size = keys.moved(step, block, item.microbatch)
                    dtype = entry.graph.tensor[program.values[step.src].tensor].dtype
                    if len(group) > 1:
                        found.setdefault((step.kind, len(group), size), dtype)
    return found


def _count(plan: Plan) -> int:
    """Collectives in a run of the first worker."""
    program = plan.entries[_entry(plan)].programs[0]
    steps = (step for item in program.order for step in program.blocks[item.block].steps)
    return sum(isinstance(step, Collective) for step in steps)


def _entry(plan: Plan) -> str:
    return "train" if "train" in plan.entries else next(iter(plan.entries))


def _shared(seconds: float) -> float:
    """The first worker's figure, on all."""
    figure = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(figure, 0)
    return float(figure)


class _Between:
    """What a worker computes between two collectives: products for about so many seconds, at most :data:`_WORK`.

    Workers that have computed do not arrive together, and have to be woken: a collective costs them more than when
    it is repeated without a pause.
    """

    def __init__(self, seconds: float) -> None:
        self.matrix = torch.zeros(96, 96)
        start = perf_counter()
        for _ in range(200):
            torch.mm(self.matrix, self.matrix)
        one = (perf_counter() - start) / 200
        self.times = round(_shared(min(seconds, _WORK) / one))

    def __call__(self) -> None:
        for _ in range(self.times):
            torch.mm(self.matrix, self.matrix)


def _moves(
    plan: Plan, worker: int, workers: int, between: Callable[[], None], slowdown: dict[int, float]
) -> dict[str, float]:
    """Every distinct collective that the first workers can form the group of: what it adds to their work."""
    entries = {name: msgspec.structs.replace(entry, groupings=()) for name, entry in plan.entries.items()}
    comm = DistributedComm(msgspec.structs.replace(plan, entries=entries), worker, limit=_LIMIT)
    found: dict[str, float] = {}
    for number, ((kind, ways, size), dtype) in enumerate(sorted(collectives(plan).items())):
        if ways > workers:
            continue
        group = tuple(range(ways))
        if group not in comm.groups:
            comm.groups[group] = dist.new_group(list(group))
        dist.barrier()
        if worker in group:
            collective = _collective(comm, kind, group, size, dtype, number)
            added = max(_seconds(between, collective) - _seconds(between), _seconds(collective))
            # Simulation slows down what workers do side by side, this included.
            found[move_key(kind, ways, size)] = added / slowdown.get(ways, 1.0)
        dist.barrier()
    return found


def _collective(comm: Comm, kind: str, group: Group, size: int, dtype: str, number: int) -> Callable[[], None]:
    """One such collective, as transfers make it."""
    kept: Any = getattr(torch, dtype)
    rows = max(1, size // kept.itemsize // len(group))
    whole, row = torch.zeros(len(group), rows, dtype=kept), torch.zeros(rows, dtype=kept)
    each, key = [rows // len(group)] * len(group), (number, 0)

    def run() -> None:
        if kind == "all_reduce":
            comm.all_reduce(whole.clone(), "sum", group, key).wait()
        elif kind == "reduce_scatter":
            comm.reduce_scatter(row, whole.clone(), "sum", group, key).wait()
        elif kind == "all_gather":
            comm.all_gather(whole, row.clone(), group, key).wait()
            whole.clone()
        else:
            flat = torch.zeros(sum(each), dtype=kept)
            comm.all_to_all(torch.empty_like(flat), flat, each, each, group, key).wait()

    return run


def _seconds(*acts: Callable[[], None]) -> float:
    """What doing all of it once takes, on average over repetitions; the slowest do not count."""
    found: list[float] = []
    for _ in range(_TIMES):
        start = perf_counter()
        for act in acts:
            act()
        found.append(perf_counter() - start)
    return fmean(sorted(found[2:])[: -_TIMES // 10])


class _Alone:
    ordered = False


def _together(plan: Plan, worker: int, workers: int) -> dict[int, float]:
    """Seconds of the first worker's part of the plan, rehearsed in 1, 2, … processes at once."""
    name = _entry(plan)
    alone: Any = _Alone()
    rehearsal = Rehearsal(alone)
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
