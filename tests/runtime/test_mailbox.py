"""Mailboxes: what is put in is what comes out, once, in whatever process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from superscaler.runtime.mailbox import LARGEST, Mailbox, Shelf

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory without a name")


@pytest.fixture
def boxes() -> tuple[Mailbox, Mailbox]:
    """The two ends of one mailbox, each with a mapping of its own."""
    shelf, descriptor = Shelf.make(3)
    opened = Shelf.open(os.getpid(), descriptor, 3)
    os.close(descriptor)
    return opened.mailbox(1), shelf.mailbox(1)


def never() -> bool:
    return False


def taken(box: Mailbox, like: Tensor) -> Tensor:
    found = torch.empty_like(like)
    box.take(found, 5.0, never)
    return found


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool]


@given(dtype=st.sampled_from(DTYPES), size=st.integers(0, 300), seed=st.integers(0, 99))
def test_what_comes_out_is_what_was_put_in(dtype: torch.dtype, size: int, seed: int) -> None:
    shelf, descriptor = Shelf.make(2)
    os.close(descriptor)
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, 2, (size,), generator=generator).to(dtype) for _ in range(2))
    for message, number in ((first, 0), (second, 1)):
        shelf.mailbox(number).put(message)
    assert torch.equal(taken(shelf.mailbox(1), second), second)  # in whatever order
    assert torch.equal(taken(shelf.mailbox(0), first), first)


def test_the_largest_message_leaves_its_neighbours_alone(boxes: tuple[Mailbox, Mailbox]) -> None:
    sender, receiver = boxes
    message = torch.randint(0, 255, (LARGEST,), dtype=torch.uint8)
    sender.put(message)
    assert torch.equal(taken(receiver, message), message)
    shelf, descriptor = Shelf.make(2)
    os.close(descriptor)
    shelf.mailbox(0).put(message)
    assert not shelf.mailbox(1).full()


def test_a_message_is_taken_once(boxes: tuple[Mailbox, Mailbox]) -> None:
    sender, receiver = boxes
    for turn in range(3):
        assert not receiver.full()
        sender.put(torch.tensor([float(turn)]))
        assert receiver.full()
        assert taken(receiver, torch.empty(1)).item() == turn


def test_whoever_waits_is_woken(boxes: tuple[Mailbox, Mailbox]) -> None:
    sender, receiver = boxes
    threading.Timer(0.2, lambda: sender.put(torch.ones(2))).start()
    assert taken(receiver, torch.zeros(2)).tolist() == [1.0, 1.0]


def test_every_wait_has_an_end(boxes: tuple[Mailbox, Mailbox]) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        boxes[1].take(torch.empty(1), 0.2, never)
    assert time.monotonic() - start >= 0.2


def test_nobody_waits_for_one_who_has_ended(boxes: tuple[Mailbox, Mailbox]) -> None:
    with pytest.raises(ConnectionError, match="ended"):
        boxes[1].take(torch.empty(1), 60.0, lambda: True)


def test_what_was_sent_before_the_end_arrives(boxes: tuple[Mailbox, Mailbox]) -> None:
    sender, receiver = boxes

    def last_words() -> bool:
        sender.put(torch.ones(1))
        return True

    found = torch.zeros(1)
    receiver.take(found, 60.0, last_words)
    assert found.item() == 1.0


def _put(process: int, descriptor: int) -> None:
    Shelf.open(process, descriptor, 4).mailbox(3).put(torch.arange(5))


def test_between_processes() -> None:
    shelf, descriptor = Shelf.make(4)
    sender = multiprocessing.get_context("spawn").Process(target=_put, args=(os.getpid(), descriptor))
    sender.start()
    try:
        found = torch.zeros(5, dtype=torch.int64)
        shelf.mailbox(3).take(found, 60.0, never)
        assert found.tolist() == [0, 1, 2, 3, 4]
    finally:
        sender.join(20)
        os.close(descriptor)


def test_memory_is_taken_for_what_is_written_and_given_back() -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return sum("memfd:mailboxes" in line for line in maps)

    before = mapped()
    shelf, descriptor = Shelf.make(64)
    box = shelf.mailbox(0)
    box.put(torch.ones(4))
    assert os.fstat(descriptor).st_blocks * 512 <= 64 * os.sysconf("SC_PAGE_SIZE")
    os.close(descriptor)
    del shelf
    assert mapped() == before + 1  # a mailbox keeps it
    del box
    assert mapped() == before


def test_others_can_open_them_only_while_the_descriptor_is_open() -> None:
    shelf, descriptor = Shelf.make(1)
    os.close(descriptor)
    with pytest.raises(OSError, match="No such file"):
        Shelf.open(os.getpid(), descriptor, shelf.count)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), data=st.data())
def test_whatever_tensors_a_message_lies_in(sizes: list[int], data: st.DataObject) -> None:
    """One mailbox, message after message: from tensors that were there before, that are new, that are changed."""
    shelf, descriptor = Shelf.make(1)
    os.close(descriptor)
    sender, receiver = shelf.mailbox(0), shelf.mailbox(0)
    sources = [torch.zeros(2, size) for size in sizes]
    targets = [torch.zeros(2, size) for size in sizes]
    for turn in range(8):
        n = data.draw(st.integers(0, len(sizes) - 1))
        if data.draw(st.booleans()):
            sources[n], targets[n] = torch.zeros(2, sizes[n]), torch.zeros(2, sizes[n])
        sources[n].copy_(torch.arange(2.0 * sizes[n]).view(2, -1) + turn)
        assert sender.put(sources[n])
        receiver.take(targets[n], 5.0, never)
        assert torch.equal(sources[n], targets[n])


def test_a_message_is_in_row_major_order(boxes: tuple[Mailbox, Mailbox]) -> None:
    sender, receiver = boxes
    across = torch.arange(6.0).view(2, 3).t()
    for _ in range(2):
        sender.put(across)
        assert torch.equal(taken(receiver, torch.zeros(3, 2)), across)


def test_what_does_not_fit_is_not_put_in(boxes: tuple[Mailbox, Mailbox]) -> None:
    sender, receiver = boxes
    large = torch.zeros(LARGEST + 1, dtype=torch.uint8)
    assert not sender.fits(large)
    assert not sender.put(large)
    assert not receiver.full()
