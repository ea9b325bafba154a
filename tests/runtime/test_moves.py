"""Collectives measured where a plan has them."""

from __future__ import annotations

from time import sleep

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.layout import PartialKind
from superscaler.ir.plan import Plan
from superscaler.runtime.comm import Group, Handle, Key
from superscaler.runtime.crowd import measure_crowd
from superscaler.runtime.gaps import course
from superscaler.runtime.moves import QUANTILES, Found, InPlace, bodies, collectives, keyed, quantiles
from superscaler.runtime.rehearsal import OVER, Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.keys import Keys


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


class Late(Rehearsal):
    """Communication whose collectives are over after a while."""

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        sleep(0.2)
        return OVER


def test_a_body_is_measured_without_its_collectives() -> None:
    found, seen = plan("data_parallel:ways=2", 2), Found()
    keys = Keys(found, found.entries["train"], found.entries["train"].programs[0])
    in_place = InPlace(Late(Reduced()), 0, 2)
    worker = make_worker(found, 0, in_place, WorkerOptions())
    in_place.seconds.clear()
    in_place.run([worker.entries["train"]])
    execution = worker.entries["train"]
    seen.note(in_place, execution, keyed(keys), bodies(keys), course(execution))
    worker.close()
    assert min(map(min, seen.moves.values())) >= 0.2
    assert max(map(max, seen.blocks.values())) < 0.2


def test_quantiles_keep_the_mean_with_what_seldom_happens() -> None:
    times = [1.0] * 99 + [201.0]
    found = quantiles(times)
    assert len(found) == QUANTILES
    assert found == sorted(found)
    assert sum(found) / len(found) == pytest.approx(3.0)
    assert found[-1] == pytest.approx(41.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_quantiles_of_however_many(times: list[float]) -> None:
    assert sum(quantiles(times)) / QUANTILES == pytest.approx(sum(times) / len(times))


# --- messages in place --------------------------------------------------------------------------------------------


class Noted(Rehearsal):
    """Communication that notes whom messages go to and come from."""

    def __init__(self) -> None:
        self.ordered = False
        self.messages: list[tuple[str, int]] = []

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        self.messages.append(("to", peer))
        return OVER

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        self.messages.append(("from", peer))
        return OVER


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 8])
def test_every_message_of_a_crew_has_both_ends(workers: int) -> None:
    """All run the same Program: whichever end an item is, one neighbour sends what the other receives."""
    crew = [InPlace(Noted(), worker, workers) for worker in range(workers)]
    for turn in range(6):
        for worker, in_place in enumerate(crew):
            post = in_place.send if turn in (0, 1, 4) else in_place.recv
            handle = post(torch.zeros(3), (worker + 1) % workers, (turn, 0))
            if handle is not None:
                handle.wait()
    messages = [in_place.comm.messages for in_place in crew if isinstance(in_place.comm, Noted)]
    sent = sorted((worker, peer) for worker, found in enumerate(messages) for way, peer in found if way == "to")
    taken = sorted((peer, worker) for worker, found in enumerate(messages) for way, peer in found if way == "from")
    assert sent == taken
    assert all({way for way, _ in found} == {"to", "from"} for found in messages[1:-1])
    assert len(sent) == 6 * (workers // 2)


def test_a_crew_that_forms_anew_is_in_step() -> None:
    """Whoever has taken part in an odd number of messages before, and whoever has not."""
    first, second = InPlace(Noted(), 0, 1), InPlace(Noted(), 1, 1)
    first.send(torch.zeros(3), 1, (0, 0))
    for in_place in (first, second):
        in_place.form(2)
        in_place.send(torch.zeros(3), 0, (1, 0))
    told = [in_place.comm.messages for in_place in (first, second) if isinstance(in_place.comm, Noted)]
    assert {way for messages in told for way, _ in messages} == {"to", "from"}


def test_a_message_that_is_waited_for_is_taken_down() -> None:
    in_place = InPlace(Noted(), 0, 2)
    in_place.recv(torch.zeros(3), 1, (0, 0)).wait()
    ((start, end),) = in_place.waits
    assert start <= end


class Lent(Rehearsal):
    """Communication that notes where what comes is put, and puts ones there."""

    def __init__(self) -> None:
        self.ordered = False
        self.places: list[int] = []

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle | None:
        return None

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        self.places.append(tensor.fill_(1).data_ptr())
        return OVER


def test_posting_makes_no_tensors() -> None:
    """A plan's workers make none either: sends of one shape share a place for what comes instead."""
    comm = Lent()
    in_place = InPlace(comm, 0, 2)
    sent = [torch.zeros(3) for _ in range(8)]
    for number, tensor in enumerate(sent):
        in_place.send(tensor, 1, (number, 0))
    assert len(comm.places) == 4
    assert len({*comm.places}) == 1
    assert all(not tensor.any() for tensor in sent)


@pytest.mark.parametrize(("shape", "dtype"), [((2,), torch.float32), ((3,), torch.float64)])
def test_what_comes_instead_of_another_shape_has_another_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    comm = Lent()
    in_place = InPlace(comm, 0, 2)
    for tensor in (torch.zeros(3), torch.zeros(3), torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)):
        in_place.send(tensor, 1, (0, 0))
    assert len({*comm.places}) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_received_holds_zeros_where_nothing_comes_and_that_is_not_counted(workers: int) -> None:
    in_place = InPlace(Lent(), 0, workers)
    received = [torch.full((3,), float("nan")) for _ in range(4)]
    for number, tensor in enumerate(received):
        in_place.recv(tensor, 1, (number, 0)).wait()
    cleared = [tensor for tensor in received if not tensor.any()]
    assert len(cleared) == len(in_place.aside) == (4 if workers == 1 else 2)
    assert all(start <= end for start, end in in_place.aside)
    in_place.forget()
    assert not in_place.aside


@pytest.mark.slow
def test_what_a_message_takes_of_a_worker_is_measured() -> None:
    found = measure_crowd(plan("pipeline:stages=2,microbatches=4", 2))
    assert found.moves == {}
    assert 0 < found.post < 0.1
