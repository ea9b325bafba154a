"""What lies between the tasks of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from superscaler.runtime.gaps import Gap, Times, course, gaps

US = 1000


@dataclass(frozen=True)
class Lane:
    lane: str


def execution(lanes: str, waits: tuple[int, ...] = ()) -> Any:
    """Items in order: ``c`` computes, ``m`` is a message; ``waits``: how many messages each needs to be over."""
    blocks = [Lane("compute" if letter == "c" else "comm") for letter in lanes]
    due = waits or (0,) * len(lanes)
    items = [SimpleNamespace(number=n, block=n, waits=tuple(range(count))) for n, count in enumerate(due)]
    return SimpleNamespace(program=SimpleNamespace(order=items, blocks=blocks), items=items)


@pytest.mark.parametrize(
    ("lanes", "waits", "found"),
    [
        ("cc", (), [Gap(0, (), 0), Gap(1, (), 0)]),
        ("cmmcmc", (), [Gap(0, (), 0), Gap(3, (1, 2), 0), Gap(5, (4,), 0)]),
        ("cmcmc", (0, 0, 1, 1, 2), [Gap(0, (), 0), Gap(2, (1,), 1), Gap(4, (3,), 3)]),
    ],
)
def test_before_a_task_stand_what_is_posted_and_what_must_be_over(
    lanes: str, waits: tuple[int, ...], found: list[Gap]
) -> None:
    assert course(execution(lanes, waits)) == found


def test_gaps_of_as_many_posts_and_ends_have_one_key() -> None:
    _, first, second = course(execution("cmmcmmc", (0, 0, 0, 1, 1, 0, 0)))
    assert first.posts != second.posts
    assert first.key == second.key == "2 1"


@pytest.mark.parametrize(
    ("lanes", "times", "waits", "found"),
    [
        ("cc", [(0, 10), (13, 20)], [], [3]),
        ("cmc", [(0, 10), (11, 90), (14, 20)], [], [4]),
        ("cmmc", [(0, 10), (11, 90), (12, 90), (20, 30)], [], [10]),
        ("cmmc", [(0, 10), (11, 90), (12, 90), (20, 30)], [(2, 5), (13, 17), (25, 26)], [6]),
        ("mcm", [(0, 1), (2, 10), (11, 12)], [], []),
    ],
)
def test_time_between_tasks_without_waiting(lanes: str, times: Times, waits: Times, found: list[int]) -> None:
    scaled = [(a * US, b * US) for a, b in times]
    each = gaps(course(execution(lanes)), scaled, [(a * US, b * US) for a, b in waits])
    assert [seconds * 1e6 for _, seconds in each] == pytest.approx(found)
