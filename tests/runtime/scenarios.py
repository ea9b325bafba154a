"""What any implementation of communication must do, as three workers see it. Run by processes too, so importable."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph
from superscaler.ir.layout import Space
from superscaler.ir.plan import Certificate, Entry, Plan
from superscaler.ir.program import Grouping
from superscaler.runtime.comm import Comm, Handle
from superscaler.runtime.distributed import CommunicationFailed, DistributedComm, connect, disconnect, serve

WORKERS = 3
Found = dict[str, list[float]]


def plan() -> Plan:
    """Three workers that communicate all together, and two by two."""
    graph = Graph((), (), (), {})
    groupings = (Grouping(((0, 1, 2),)), Grouping(((0, 1), (2,))))
    entry = Entry(graph, (), (), groupings, (), Certificate("", 0, 0, 0.0, 0, "", "", 0, 0.0), "micro", 4)
    return Plan({"train": entry}, Space((), ()), (), Cluster.local(WORKERS), WORKERS)


def scenario(comm: Comm, worker: int, found: Found, dtype: torch.dtype = torch.float64) -> Iterator[Handle]:
    """Every kind of communication once."""
    everyone = (0, 1, 2)
    mine = torch.arange(3, dtype=dtype) + 10 * worker
    after, before = (worker + 1) % WORKERS, (worker - 1) % WORKERS
    # Two messages on one way, taken in the other order.
    sends = [comm.send(mine, after, (0, j)) for j in (0, 1)]
    for j in (1, 0):
        ring = torch.empty(3, dtype=dtype)
        yield comm.recv(ring, before, (0, j))
        found[f"ring {j}"] = ring.tolist()
    yield from sends
    for number, kind in enumerate(("sum", "max", "min")):
        value = mine.clone()
        yield comm.all_reduce(value, kind, everyone, (1 + number, 0))  # type: ignore[arg-type]
        found[kind] = value.tolist()
    rows = torch.empty(WORKERS, 3, dtype=dtype)
    yield comm.all_gather(rows, mine, everyone, (4, 0))
    found["all_gather"] = rows.flatten().tolist()
    share = torch.empty(3, dtype=dtype)
    yield comm.reduce_scatter(share, rows, "sum", everyone, (5, 0))
    found["reduce_scatter"] = share.tolist()
    given = [worker, 0, 3 - worker]  # uneven, and nothing for worker 1
    taken = {0: [0, 1, 2], 1: [0, 0, 0], 2: [3, 2, 1]}[worker]
    got = torch.empty(sum(taken), dtype=dtype)
    yield comm.all_to_all(got, mine, taken, given, everyone, (6, 0))
    found["all_to_all"] = got.tolist()
    if worker < 2:
        pair = mine.clone()
        yield comm.all_reduce(pair, "sum", (0, 1), (7, 0))
        found["pair"] = pair.tolist()


def threads() -> set[str]:
    """Those of this process, number and name."""
    return {f"{task.name} {(task / 'comm').read_text().strip()}" for task in Path("/proc/self/task").iterdir()}


def processes(target: Any, limit: float) -> list[Any]:
    """Run ``target(comm, worker)`` in a process per worker; what each returns, or its error's text."""
    context = multiprocessing.get_context("spawn")
    store = serve(WORKERS, limit=30)
    results = context.Queue()
    started = [
        context.Process(target=_process, args=(target, w, store.port, limit, results), daemon=True)
        for w in range(WORKERS)
    ]
    for process in started:
        process.start()
    try:
        found = dict(results.get(timeout=120) for _ in started)
        return [found[w] for w in range(WORKERS)]
    finally:
        for process in started:
            process.join(20)
            process.kill()


def _process(target: Any, worker: int, port: int, limit: float, results: Any) -> None:
    try:
        connect(worker, WORKERS, "127.0.0.1", port, device=torch.device("cpu"), limit=30)
        results.put((worker, target(DistributedComm(plan(), worker, limit=limit), worker)))
        disconnect()
    except CommunicationFailed as e:
        results.put((worker, str(e)))
    except BaseException:
        results.put((worker, traceback.format_exc()))


def all_of_it(comm: Comm, worker: int) -> list[Found]:
    """The scenario in three dtypes."""
    found: list[Found] = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found.append({})
        for handle in scenario(comm, worker, found[-1], dtype):
            handle.wait()
    return found


def policies(comm: Comm, worker: int) -> set[int]:
    """How the threads that move messages are scheduled."""
    return {os.sched_getscheduler(int(thread.split()[0])) for thread in threads() if "gloo_tcp_loop" in thread}


def nobody_sends(comm: Comm, worker: int) -> str:
    """Worker 0 waits for what never comes."""
    if worker == 0:
        comm.recv(torch.empty(1), 1, (3, 2)).wait()
    return "fine"
