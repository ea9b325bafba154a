"""Collectives measured where a plan has them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.layout import PartialKind
from superscaler.ir.plan import Plan
from superscaler.runtime.comm import Group, Handle, Key
from superscaler.runtime.crowd import measure_crowd
from superscaler.runtime.moves import InPlace, collectives
from superscaler.runtime.rehearsal import OVER, Rehearsal


class Reduced(Rehearsal):
    """Communication that notes the groups that it reduces over."""

    def __init__(self) -> None:
        self.ordered = False
        self.groups: list[Group] = []

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        self.groups.append(group)
        return OVER


@pytest.mark.parametrize(
    ("worker", "group"), [(0, [(0, 1)]), (1, [(0, 1)]), (3, [(2, 3)]), pytest.param(4, [], id="left alone")]
)
def test_a_crew_forms_groups_of_the_same_size(worker: int, group: list[Group]) -> None:
    comm = Reduced()
    in_place = InPlace(comm, worker, 5)
    in_place.on = True
    in_place.all_reduce(torch.zeros(3), "sum", (7, 9), (12, 1)).wait()
    assert comm.groups == group
    assert [*in_place.seconds] == [(12, 1)] * len(group)


def test_both_rounds_of_a_collective_count_as_one() -> None:
    in_place = InPlace(Reduced(), 0, 2)
    for key in ((3, 4), (3, -5)):
        in_place.all_reduce(torch.zeros(3), "sum", (0, 1), key).wait()
    assert [*in_place.seconds] == [(3, 4)]


class Blocks(nn.Module):
    """Of sizes that three workers do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 13), nn.Linear(13, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x))).square().mean()


def plan(script: str, workers: int) -> Plan:
    return ss.compile(
        Blocks(), (torch.zeros(8, 16),), cluster=ss.Cluster.local(workers), plan=script, optimizer=ss.AdamW()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("script", "workers"), [("megatron:tensor=3", 3), ("zero:level=3,data=4", 4)])
def test_every_collective_is_measured(script: str, workers: int) -> None:
    found = plan(script, workers)
    together = measure_crowd(found)
    assert set(together.moves) == collectives(found)
    assert all(0 < seconds < 1 for seconds in together.moves.values())
