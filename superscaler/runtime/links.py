"""The link between two workers of this machine, measured: processes send a message back and forth, all pairs at once.

Run as a program (``python -m superscaler.runtime.links WORKER PORT DEVICE WORKERS``) it is one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import mean, median
from time import perf_counter, sleep

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.ir.cluster import Link
from superscaler.runtime.comm import Key
from superscaler.runtime.distributed import DistributedComm, connect, disconnect
from superscaler.runtime.mail import neighbours
from superscaler.runtime.processes import MOST, together

SMALL, LARGE = 4 << 10, 4 << 20  # bytes
_BETWEEN, _WORK = 0.02, 4 << 20  # seconds, and bytes, that a worker is busy with between two communications
_LIMIT = 120.0  # seconds for all of it
_KEY: Key = (0, 0)


def measure_link(device: str, workers: int = 2) -> Link:
    """Between two of ``workers`` workers of this machine, all pairs at once: an even number that it has GPUs for.

    Raises :class:`RunError` if a process fails or takes too long.
    """
    most = MOST if device == "cpu" else torch.cuda.device_count()
    count = max(2, min(workers, most) // 2 * 2)
    found = together("superscaler.runtime.links", count, [device, str(count)], limit=_LIMIT, doing="measuring the link")
    return msgspec.json.decode(found, type=Link)


def between(worker: int, workers: int, device: torch.device) -> Link:
    """The link between this process and its neighbour, all pairs at once; called by every process, all connected."""
    comm = comm_of(worker, workers, device)
    short, long = _seconds(comm, SMALL, device, 40), _seconds(comm, LARGE, device, 10)
    arriving = _usual(arrivals(comm, 100, _task())) if device.type == "cpu" else short
    bandwidth = (LARGE - SMALL) / max(long - short, 1e-9)
    return Link("measured", bandwidth, max(arriving - SMALL / bandwidth, 0.0))


def _main(worker: int, port: int, kind: str, workers: int) -> None:
    device = torch.device(kind, worker) if kind == "cuda" else torch.device(kind)
    connect(worker, workers, "127.0.0.1", port, device=device, limit=_LIMIT)
    try:
        link = between(worker, workers, device)
    finally:
        disconnect()
    if worker == 0:
        print(msgspec.json.encode(link).decode())


def _task() -> Callable[[], None]:
    """What comes between two communications: it takes a while, and the caches hold its data afterwards."""
    data = torch.zeros(_WORK // 4)

    def compute() -> None:
        sleep(_BETWEEN)
        data.add_(1)

    return compute


def comm_of(worker: int, workers: int, device: torch.device) -> DistributedComm:
    """Communication of the process with its neighbour, as that of a plan's workers."""
    mail = neighbours(worker, workers, [_KEY]) if device.type == "cpu" else None
    return DistributedComm(worker, limit=_LIMIT, mail=mail)


def _send(comm: DistributedComm, message: Tensor) -> None:
    handle = comm.send(message, comm.worker ^ 1, _KEY)
    if handle is not None:
        handle.wait()


def _seconds(comm: DistributedComm, size: int, device: torch.device, times: int) -> float:
    """One way: half of there and back."""
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    found: list[float] = []
    for _ in range(times + 3):
        start = perf_counter()
        for sender in (0, 1):
            if sender == comm.worker % 2:
                _send(comm, message)
            else:
                comm.recv(message, comm.worker ^ 1, _KEY).wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((perf_counter() - start) / 2)
    return median(found[3:])


def arrivals(comm: DistributedComm, times: int, task: Callable[[], object]) -> list[float]:
    """Seconds of one way, to a worker that has to be woken, from one that has run ``task``.

    A message says when it was sent. (Workers of one machine have one clock.)
    """
    message = torch.zeros(SMALL // 8, dtype=torch.float64)
    found: list[float] = []
    for turn in range(times + 3):
        dist.barrier()  # workers of a pipeline end their tasks together
        if (turn + comm.worker) % 2:
            task()
            message[0] = perf_counter()
            _send(comm, message)
        else:
            comm.recv(message, comm.worker ^ 1, _KEY).wait()
            found.append(perf_counter() - float(message[0]))
    return found[2:]


def _usual(seconds: Sequence[float]) -> float:
    """Their mean but for the longest, which are of something else that ran."""
    return mean(sorted(seconds)[: len(seconds) * 19 // 20])


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
