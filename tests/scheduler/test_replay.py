"""Replay with what workers do between tasks: what they post, what they find finished, in the order they begin it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.entry import Entry
from superscaler.ir.program import Item
from superscaler.runtime.gaps import begun
from superscaler.runtime.moves import courses
from superscaler.scheduler.replay import replay
from superscaler.transforms.optimize import SGD
from tests.ir import plans_by_hand


class Chain(nn.Module):
    """Layers one after the other, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().sum()


def in_turn(entry: Entry, of: Callable[[bool], int]) -> Callable[[int, Item], int]:
    """What ``of`` says of items that compute, and of others."""

    def number(role: int, item: Item) -> int:
        program = entry.programs[role]
        return of(program.blocks[item.block].lane == "compute")

    return number


@given(each=st.integers(1, 1000), own=st.integers(0, 100))
def test_a_worker_that_waits_for_nobody_takes_the_sum(each: int, own: int) -> None:
    """Of its tasks and of what it does before all but the first."""
    for entry in plans_by_hand.in_one_piece().entries.values():
        count = len(entry.programs[0].order)
        found = replay(entry, lambda *_: each, finishes=lambda *_: own)
        assert found.ends[0][-1] == count * each + (count - 1) * own


@pytest.fixture(scope="module")
def pipelined() -> ss.Plan:
    script, cluster = "pipeline:stages=4,microbatches=4,schedule=1f1b", ss.Cluster.local(4)
    return ss.compile(
        Chain(), (torch.zeros(8, 4),), cluster=cluster, plan=script, optimizer=SGD(lr=0.1), evaluate=False
    )


def test_workers_begin_every_item_once(pipelined: ss.Plan) -> None:
    for program, order in zip(pipelined.entries["train"].programs, orders(pipelined), strict=True):
        assert sorted(order) == list(range(len(program.order)))


def test_receives_that_are_begun_early_cost_nothing_where_posting_is_free(pipelined: ss.Plan) -> None:
    entry = pipelined.entries["train"]
    lengths = in_turn(entry, lambda computes: 100 if computes else 10)
    assert orders(pipelined) != [list(range(len(program.order))) for program in entry.programs]
    early, late = replay(entry, lengths, orders=orders(pipelined)), replay(entry, lengths)
    assert max(map(max, early.ends)) <= max(map(max, late.ends))


def test_what_is_posted_before_a_task_delays_it(pipelined: ss.Plan) -> None:
    entry = pipelined.entries["train"]
    lengths = in_turn(entry, lambda computes: 100 if computes else 10)
    free = replay(entry, lengths, orders=orders(pipelined))
    paid = replay(entry, lengths, posts=lambda *_: 7, finishes=lambda *_: 3, orders=orders(pipelined))
    for role, order in enumerate(orders(pipelined)):
        for number in order:
            assert paid.starts[role][number] >= free.starts[role][number]
    assert max(map(max, paid.ends)) > max(map(max, free.ends))


def orders(plan: ss.Plan) -> list[list[int]]:
    """By role, the items in the order in which a worker begins them."""
    programs = plan.entries["train"].programs
    return [begun(course, program) for course, program in zip(courses(plan, "train"), programs, strict=True)]
