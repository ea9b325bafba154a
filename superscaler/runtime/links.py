"""The link between two workers of this machine, measured: two processes send a message back and forth.

Run as a program (``python -m superscaler.runtime.links WORKER PORT DEVICE``) it is one of the two.
"""

from __future__ import annotations

import sys
from statistics import mean, median
from time import perf_counter, sleep

import msgspec
import torch
import torch.distributed as dist

from superscaler.ir.cluster import Link
from superscaler.runtime.distributed import connect, disconnect
from superscaler.runtime.processes import together

SMALL, LARGE = 4 << 10, 4 << 20  # bytes
_BETWEEN = 0.01  # seconds that a worker is busy otherwise between two communications
_LIMIT = 120.0  # seconds for all of it


class Measured(msgspec.Struct, frozen=True):
    """``link`` between two workers; ``post``: seconds of a worker's own time that posting one end takes."""

    link: Link
    post: float


def measure_link(device: str) -> Measured:
    """Between two workers of this machine. Raises :class:`RunError` if a process fails or takes too long."""
    found = together("superscaler.runtime.links", 2, [device], limit=_LIMIT, doing="measuring the link")
    return msgspec.json.decode(found, type=Measured)


def _main(worker: int, port: int, kind: str) -> None:
    device = torch.device(kind, worker) if kind == "cuda" else torch.device(kind)
    connect(worker, 2, "127.0.0.1", port, device=device, limit=_LIMIT)
    try:
        short = _seconds(worker, SMALL, device, 40, _BETWEEN)
        long = _seconds(worker, LARGE, device, 10)
        post = _posting(worker, device, 20)
    finally:
        disconnect()
    if worker == 0:
        bandwidth = (LARGE - SMALL) / max(long - short, 1e-9)
        link = Link("measured", bandwidth, max(short - SMALL / bandwidth, 0.0))
        print(msgspec.json.encode(Measured(link, post)).decode())


def _posting(worker: int, device: torch.device, times: int) -> float:
    """What posting takes a worker that has done something else before, sending and receiving by turns."""
    message = torch.zeros(SMALL, dtype=torch.uint8, device=device)
    found: list[float] = []
    for turn in range(times + 2):
        sleep(_BETWEEN)
        start = perf_counter()
        post = dist.isend if (turn + worker) % 2 else dist.irecv
        work = post(message, 1 - worker)
        found.append(perf_counter() - start)
        if work is not None:
            work.wait()
    return mean(sorted(found[2:])[: times - 2])


def _seconds(worker: int, size: int, device: torch.device, times: int, pause: float = 0.0) -> float:
    """One way: half of there and back, after a ``pause``."""
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    found: list[float] = []
    for _ in range(times + 3):
        sleep(pause)
        start = perf_counter()
        for sender in (0, 1):
            if sender == worker:
                dist.send(message, 1 - worker)
            else:
                dist.recv(message, 1 - worker)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((perf_counter() - start) / 2)
    return median(found[3:])


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
