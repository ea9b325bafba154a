"""One interface, two implementations: what workers see is the same in one process and in several."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
from scenarios import (
    WORKERS,
    Found,
    all_of_it,
    by_gloo,
    by_mailboxes,
    ends_early,
    nobody_sends,
    policies,
    processes,
    scenario,
    threads,
)

from superscaler.runtime.distributed import connect, disconnect, serve
from superscaler.runtime.inline import Exchange, InlineComm, drive

EXPECTED: list[Found] = [
    {
        "ring 0": [20.0, 21.0, 22.0], "ring 1": [20.0, 21.0, 22.0], "sum": [30.0, 33.0, 36.0],
        "max": [20.0, 21.0, 22.0], "min": [0.0, 1.0, 2.0],
        "all_gather": [0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 20.0, 21.0, 22.0], "reduce_scatter": [0.0, 3.0, 6.0],
        "all_to_all": [10.0, 20.0, 21.0], "pair": [10.0, 12.0, 14.0],
    },
    {
        "ring 0": [0.0, 1.0, 2.0], "ring 1": [0.0, 1.0, 2.0], "sum": [30.0, 33.0, 36.0],
        "max": [20.0, 21.0, 22.0], "min": [0.0, 1.0, 2.0],
        "all_gather": [0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 20.0, 21.0, 22.0], "reduce_scatter": [30.0, 33.0, 36.0],
        "all_to_all": [], "pair": [10.0, 12.0, 14.0],
    },
    {
        "ring 0": [10.0, 11.0, 12.0], "ring 1": [10.0, 11.0, 12.0], "sum": [30.0, 33.0, 36.0],
        "max": [20.0, 21.0, 22.0], "min": [0.0, 1.0, 2.0],
        "all_gather": [0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 20.0, 21.0, 22.0], "reduce_scatter": [60.0, 63.0, 66.0],
        "all_to_all": [0.0, 1.0, 2.0, 11.0, 12.0, 22.0],
    },
]  # fmt: skip


def test_inline() -> None:
    exchange = Exchange()
    found: list[Found] = [{} for _ in range(WORKERS)]
    drive({w: scenario(InlineComm(exchange, w), w, found[w]) for w in range(WORKERS)})
    assert found == EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_gloo, by_mailboxes])
def test_processes(make: Any) -> None:
    got = processes(all_of_it, 30, make)
    assert got == [[expected] * 3 for expected in EXPECTED]


@pytest.mark.slow
def test_what_moves_messages_interrupts_nobody() -> None:
    """Of all groups: interrupting whoever holds a connection's lock, it would try for it until its time is over."""
    assert processes(policies, 30) == [{os.SCHED_BATCH}] * WORKERS


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_gloo, by_mailboxes])
def test_every_wait_has_an_end_and_names_who_waited_for_what(make: Any) -> None:
    got = processes(nobody_sends, 2, make)
    assert "worker 0: receive number 3, micro-batch 2, with workers [1]" in got[0]
    assert got[1:] == ["fine", "fine"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_gloo, by_mailboxes])
def test_nobody_waits_for_one_who_has_ended(make: Any) -> None:
    got = processes(ends_early, 100, make)
    assert "worker 0: receive number 3, micro-batch 2, with workers [1] failed" in got[0]
    assert got[1:] == [None, "fine"]


def test_whoever_leaves_leaves_no_thread_behind() -> None:
    """Python must not shut down beside a group's threads: one that still holds a tensor would end the process."""
    before, store = threads(), serve(1, limit=30)
    connect(0, 1, "127.0.0.1", store.port, device=torch.device("cpu"), limit=30)
    total = torch.ones(3)
    cycle: list[object] = [torch.distributed.group.WORLD, torch.distributed.all_reduce(total, async_op=True)]
    cycle.append(cycle)
    ends = time.monotonic() + 30
    while not any("gloo" in name for name in threads() - before):  # a thread names itself when it comes to run
        assert time.monotonic() < ends, "no thread of gloo's has come"
        time.sleep(0.01)
    del cycle
    disconnect()
    assert not any("gloo" in name for name in threads() - before)
