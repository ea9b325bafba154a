"""What lies between the tasks of a worker, shared among the communications that stand there."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from superscaler.runtime.gaps import Times, gaps

US = 1000


@dataclass(frozen=True)
class Lane:
    lane: str


def execution(lanes: str) -> Any:
    """Items in order: ``c`` computes, ``m`` is a message."""
    blocks = [Lane("compute" if letter == "c" else "comm") for letter in lanes]
    items = [SimpleNamespace(number=number, block=number) for number in range(len(lanes))]
    return SimpleNamespace(program=SimpleNamespace(order=items, blocks=blocks), items=items)


@pytest.mark.parametrize(
    ("lanes", "times", "waits", "found"),
    [
        ("cc", [(0, 10), (13, 20)], [], []),
        ("cmc", [(0, 10), (11, 90), (14, 20)], [], [4]),
        ("cmmc", [(0, 10), (11, 90), (12, 90), (20, 30)], [], [5, 5]),
        ("cmmc", [(0, 10), (11, 90), (12, 90), (20, 30)], [(2, 5), (13, 17), (25, 26)], [3, 3]),
        ("mcm", [(0, 1), (2, 10), (11, 12)], [], []),
    ],
)
def test_time_between_tasks_is_that_of_what_is_posted_there(
    lanes: str, times: Times, waits: Times, found: list[int]
) -> None:
    scaled = [(a * US, b * US) for a, b in times]
    each = list(gaps(execution(lanes), scaled, [(a * US, b * US) for a, b in waits]))
    number = len(found) // max(1, len(each))
    assert [seconds * 1e6 for seconds in each for _ in range(number)] == pytest.approx(found)
