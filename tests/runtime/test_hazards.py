"""An item waits for what it depends on, and for nothing else."""

from __future__ import annotations

from superscaler.runtime.hazards import Access, receiving_early, waits


def access(reads: str = "", writes: str = "") -> Access:
    return Access(frozenset(map(int, reads.split())), frozenset(map(int, writes.split())))


def test_a_reader_waits_for_what_it_receives() -> None:
    recv, other, reader = access(writes="1"), access("2", "3"), access("1", "4")
    assert waits([recv, other, reader], [True, False, False], {}) == [(), (), (0,), ()]


def test_a_send_is_waited_for_at_the_end_if_nobody_touches_its_source() -> None:
    assert waits([access("1"), access("1", "2")], [True, False], {}) == [(), (), (0,)]


def test_who_overwrites_what_is_being_sent_waits() -> None:
    assert waits([access("1"), access("2", "1")], [True, False], {}) == [(), (0,), ()]


def test_bytes_of_the_arena_that_are_used_again() -> None:
    spans = {1: (0, 64), 2: (64, 128), 3: (32, 96)}
    send, beside, over = access("1"), access(writes="2"), access(writes="3")
    assert waits([send, beside, over], [True, False, False], spans) == [(), (), (0,), ()]


def test_a_send_of_what_is_still_arriving_waits() -> None:
    assert waits([access(writes="1"), access("1")], [True, True], {}) == [(), (0,), (1,)]


def test_a_receive_is_posted_before_the_computation_in_front_of_it() -> None:
    send, compute, recv, reader = access("1"), access("2", "3"), access(writes="4"), access("4", "5")
    posted = [True, False, True, False]
    assert receiving_early([send, compute, recv, reader], [False, False, True, False], posted, {}, ordered=True) == [
        0,
        2,
        1,
        3,
    ]
    # It stays behind another communication, and behind who uses its place.
    assert receiving_early([compute, send, recv], [False, False, True], [False, True, True], {}, ordered=True) == [
        0,
        1,
        2,
    ]
    user = access("4", "6")
    assert receiving_early([user, recv], [False, True], [False, True], {}, ordered=False) == [0, 1]
    spans = {2: (0, 64), 3: (64, 128), 4: (32, 96)}
    assert receiving_early([compute, recv], [False, True], [False, True], spans, ordered=False) == [0, 1]


def test_where_keys_match_a_receive_into_the_arena_passes_other_communications() -> None:
    send, compute, recv = access("1"), access("2", "3"), access(writes="4")
    kinds, posted = [False, False, True], [True, False, True]
    spans = {4: (0, 64)}
    assert receiving_early([send, compute, recv], kinds, posted, spans, ordered=False) == [2, 0, 1]
    assert receiving_early([send, compute, recv], kinds, posted, spans, ordered=True) == [0, 2, 1]
    assert receiving_early([send, compute, recv], kinds, posted, {}, ordered=False) == [0, 2, 1]
    assert receiving_early([send, compute, recv], kinds, posted, {**spans, 1: (32, 96)}, ordered=False) == [0, 2, 1]
