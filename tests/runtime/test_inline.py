"""Workers of one process: they take turns, add up in one order, and say so when they are stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from superscaler.errors import WorkerError
from superscaler.runtime.comm import Comm, Handle
from superscaler.runtime.inline import Exchange, InlineComm, drive

Script = Callable[[Comm, int], Iterator[Handle]]


def together(count: int, script: Script) -> Exchange:
    exchange = Exchange()
    drive({w: script(InlineComm(exchange, w), w) for w in range(count)})
    return exchange


def test_messages_cross_whoever_comes_first() -> None:
    got: dict[int, list[float]] = {}

    def script(comm: Comm, worker: int) -> Iterator[Handle]:
        out = torch.empty(2)
        yield comm.recv(out, 1 - worker, (worker, 0))
        got[worker] = out.tolist()

    def eager(comm: Comm, worker: int) -> Iterator[Handle]:
        mine = torch.full((2,), float(worker))
        handle = comm.send(mine, 1 - worker, (1 - worker, 0))
        mine.fill_(9)  # a message is copied when it is posted
        yield handle
        yield from script(comm, worker)

    exchange = together(2, eager)
    assert got == {0: [1.0, 1.0], 1: [0.0, 0.0]}
    assert not exchange.mail


@pytest.mark.parametrize(("kind", "expected"), [("sum", 6.0), ("max", 3.0), ("min", 1.0)])
def test_reductions(kind: str, expected: float) -> None:
    found: list[float] = []

    def script(comm: Comm, worker: int) -> Iterator[Handle]:
        value = torch.tensor([float(worker + 1)])
        yield comm.all_reduce(value, kind, (0, 1, 2), (0, 0))  # type: ignore[arg-type]
        found.append(value.item())

    assert not together(3, script).rounds
    assert found == [expected] * 3


def test_sums_have_the_same_bits_everywhere() -> None:
    terms = [torch.tensor([x], dtype=torch.float32) for x in (1e8, 1.0, -1e8)]
    found: set[float] = set()

    def script(comm: Comm, worker: int) -> Iterator[Handle]:
        for _ in range(worker):  # arrive in another order than that of the group
            yield comm.send(torch.zeros(1), worker, (7, worker))
        value = terms[worker].clone()
        yield comm.all_reduce(value, "sum", (0, 1, 2), (0, 0))
        found.add(value.item())

    together(3, script)
    assert found == {((terms[0] + terms[1]) + terms[2]).item()}


def test_gather_scatter_and_exchange() -> None:
    def script(comm: Comm, worker: int) -> Iterator[Handle]:
        rows = torch.empty(2, 3)
        yield comm.all_gather(rows, torch.full((3,), float(worker)), (0, 1), (0, 0))
        assert rows[:, 0].tolist() == [0.0, 1.0]
        mine = torch.empty(3)
        yield comm.reduce_scatter(mine, rows + worker, "sum", (0, 1), (1, 0))
        assert mine.tolist() == [2.0 * worker + 1] * 3
        taken = [1, 2] if worker == 0 else [2, 1]
        got = torch.empty(3)
        yield comm.all_to_all(got, torch.tensor([0.0, 1.0, 2.0]) + 10 * worker, taken, taken, (0, 1), (2, 0))
        assert got.tolist() == ([0.0, 10.0, 11.0] if worker == 0 else [1.0, 2.0, 12.0])

    together(2, script)


def test_a_stuck_job_says_who_waits_for_whom() -> None:
    def script(comm: Comm, worker: int) -> Iterator[Handle]:
        yield comm.recv(torch.empty(1), 1 - worker, (5, 2))

    with pytest.raises(WorkerError, match="stuck") as caught:
        together(2, script)
    assert caught.value.details[0] == "worker 0 waits for receive number 5, micro-batch 2, with workers [1]"
