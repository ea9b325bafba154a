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
from superscaler.runtime.distributed import CommunicationFailed, DistributedComm, connect, disconnect, groups_of, serve
from superscaler.runtime.mail import neighbours

WORKERS = 3
NEVER = (3, 2)  # the key of a message that nobody sends
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
    sends = [comm.send(mine, after, key) for key in RING]
    for j in (1, 0):
        ring = torch.empty(3, dtype=dtype)
        yield comm.recv(ring, before, (0, j))
        found[f"ring {j}"] = ring.tolist()
    yield from (handle for handle in sends if handle is not None)
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


RING = [(0, 0), (0, 1)]  # the keys of the scenario's messages


def by_gloo(worker: int, limit: float) -> Comm:
    """Communication of a plan that has no messages of its own."""
    return DistributedComm.of(plan(), worker, limit=limit)


def by_mailboxes(worker: int, limit: float) -> Comm:
    """The scenario's messages have mailboxes, and so has one that is never sent."""
    mail = neighbours(worker, WORKERS, [*RING, NEVER])
    assert {*mail.outgoing} == {(key, peer) for key in (*RING, NEVER) for peer in {0, 1, 2} - {worker}}
    return DistributedComm(worker, limit=limit, groups=groups_of(plan()), microbatches=4, mail=mail)


def processes(target: Any, limit: float, make: Any = by_gloo) -> list[Any]:
    """Run ``target(make(worker, limit), worker)`` in a process per worker; what each returns, or its error's text, or
    nothing where it ends without a word."""
    context = multiprocessing.get_context("spawn")
    store = serve(WORKERS, limit=30)
    ends = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    started = [
        context.Process(target=_process, args=(target, make, w, store.port, limit, ends[w][1]), daemon=True)
        for w in range(WORKERS)
    ]
    for process, (_, told) in zip(started, ends, strict=True):
        process.start()
        told.close()
    try:
        return [_heard(heard) for heard, _ in ends]
    finally:
        for process in started:
            process.join(20)
            process.kill()


def _heard(heard: Any) -> Any:
    assert heard.poll(120)
    try:
        return heard.recv()
    except EOFError:
        return None


def _process(target: Any, make: Any, worker: int, port: int, limit: float, told: Any) -> None:
    try:
        connect(worker, WORKERS, "127.0.0.1", port, device=torch.device("cpu"), limit=30)
        told.send(target(make(worker, limit), worker))
        disconnect()
    except CommunicationFailed as e:
        told.send(str(e))
    except BaseException:
        told.send(traceback.format_exc())


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
        comm.recv(torch.empty(1), 1, NEVER).wait()
    return "fine"


def ends_early(comm: Comm, worker: int) -> str:
    """Worker 1 ends without a word, while worker 0 waits for it."""
    if worker == 1:
        os._exit(3)
    if worker == 0:
        comm.recv(torch.empty(1), 1, NEVER).wait()
    return "fine"
