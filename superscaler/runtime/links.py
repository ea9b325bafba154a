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

from superscaler.ir.cluster import Link
from superscaler.runtime.distributed import connect, disconnect, give_way
from superscaler.runtime.processes import MOST, together

SMALL, LARGE = 4 << 10, 4 << 20  # bytes
_BETWEEN, _WORK = 0.02, 4 << 20  # seconds, and bytes, that a worker is busy with between two communications
_LIMIT = 120.0  # seconds for all of it


def measure_link(device: str, workers: int = 2) -> Link:
    """Between two of ``workers`` workers of this machine, all pairs at once: an even number that it has GPUs for.

    Raises :class:`RunError` if a process fails or takes too long.
    """
    most = MOST if device == "cpu" else torch.cuda.device_count()
    count = max(2, min(workers, most) // 2 * 2)
    found = together("superscaler.runtime.links", count, [device, str(count)], limit=_LIMIT, doing="measuring the link")
    return msgspec.json.decode(found, type=Link)


def between(worker: int, device: torch.device) -> Link:
    """The link between this process and its neighbour, all pairs at once; called by every process, all connected."""
    short, long = _seconds(worker, SMALL, device, 40), _seconds(worker, LARGE, device, 10)
    arriving = _usual(arrivals(worker, 100, _task())) if device.type == "cpu" else short
    bandwidth = (LARGE - SMALL) / max(long - short, 1e-9)
    return Link("measured", bandwidth, max(arriving - SMALL / bandwidth, 0.0))


def _main(worker: int, port: int, kind: str, workers: int) -> None:
    device = torch.device(kind, worker) if kind == "cuda" else torch.device(kind)
    connect(worker, workers, "127.0.0.1", port, device=device, limit=_LIMIT)
    try:
        link = between(worker, device)
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


def _seconds(worker: int, size: int, device: torch.device, times: int) -> float:
    """One way: half of there and back."""
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    found: list[float] = []
    for _ in range(times + 3):
        start = perf_counter()
        for sender in (0, 1):
            if sender == worker % 2:
                dist.send(message, worker ^ 1)
            else:
                dist.recv(message, worker ^ 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((perf_counter() - start) / 2)
    return median(found[3:])


def arrivals(worker: int, times: int, task: Callable[[], object]) -> list[float]:
    """Seconds of one way, to a worker that has to be woken, from one that has run ``task``.

    A message says when it was sent. (Workers of one machine have one clock.)
    """
    message = torch.zeros(SMALL // 8, dtype=torch.float64)
    found: list[float] = []
    for turn in range(times + 3):
        dist.barrier()  # workers of a pipeline end their tasks together
        if (turn + worker) % 2:
            task()
            message[0] = perf_counter()
            sent = dist.isend(message, worker ^ 1)
            give_way()
            assert sent is not None
            sent.wait()
        else:
            dist.recv(message, worker ^ 1)
            found.append(perf_counter() - float(message[0]))
    return found[2:]


def _usual(seconds: Sequence[float]) -> float:
    """Their mean but for the longest, which are of something else that ran."""
    return mean(sorted(seconds)[: len(seconds) * 19 // 20])


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
