"""Chunk numbers: windows, chunks away from home, recycling."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.errors import OutOfMemory
from superscaler.runtime.memory.backend import runs_of
from superscaler.runtime.memory.chunks import ChunkNumbers


@given(st.lists(st.integers(0, 40)))
def test_runs_are_the_numbers_again(numbers):
    runs = runs_of(numbers)
    assert [n for first, count in runs for n in range(first, first + count)] == numbers
    assert all(a + n != b for (a, n), (b, _) in pairwise(runs)), "no two runs could be one"


def test_a_range_gets_neighbouring_numbers():
    numbers = ChunkNumbers(1000, alignment=32)
    a, b = numbers.window(10), numbers.window(40)
    assert (a.first, b.first) == (960, 896)
    assert numbers.take(b, range(3, 9)) == [(899, 6)]


def test_a_number_that_is_away_is_not_taken():
    numbers = ChunkNumbers(1000)
    a = numbers.window(4)
    numbers.leave(a, a.first + 1)
    first, elsewhere, rest = numbers.take(a, range(4))
    assert (first, rest) == ((a.first, 1), (a.first + 2, 2))
    assert elsewhere[0] < a.first
    numbers.freed([a.first + 1])
    assert numbers.take(a, range(4)) == [(a.first, 4)]


def test_windows_are_recycled_when_nothing_is_away():
    numbers = ChunkNumbers(8)
    a = numbers.window(8)
    numbers.leave(a, 3)
    numbers.retire(a)
    with pytest.raises(OutOfMemory):
        numbers.window(8)
    numbers.freed([3])
    assert numbers.window(8).first == 0
