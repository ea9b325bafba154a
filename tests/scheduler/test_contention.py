"""Shared cores: workers that compute at the same time slow each other down, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import superscaler as ss
from superscaler.ir.entry import Entry
from superscaler.ir.program import Item
from superscaler.scheduler.contention import replay_shared
from superscaler.scheduler.replay import replay
from tests.ir import plans_by_hand, plans_by_hand_more

PLANS: dict[str, Callable[[], ss.Plan]] = {
    name: make
    for module in (plans_by_hand, plans_by_hand_more)
    for name, make in vars(module).items()
    if getattr(make, "__annotations__", {}).get("return") == "Plan" and name not in ("plan_of", "Plan")
}


def lengths(entry: Entry, each: int) -> Callable[[int, Item], int]:
    return lambda role, item: each * (1 + (3 * role + item.block) % 5)


def alone(busy: int) -> float:
    return 1.0


@pytest.mark.parametrize("name", PLANS)
@given(each=st.integers(1, 1000), post=st.integers(0, 50))
def test_with_a_core_for_each_worker_nothing_changes(name: str, each: int, post: int) -> None:
    for entry in PLANS[name]().entries.values():
        expected = replay(entry, lengths(entry, each), posts=lambda *_: post)
        found = replay_shared(entry, lengths(entry, each), alone, 8, posts=lambda *_: post)
        assert found.ends == expected.ends


@pytest.mark.parametrize("name", PLANS)
def test_on_one_core_the_work_of_all_is_done_one_after_the_other(name: str) -> None:
    """Processor sharing conserves work: no less than the sum of all compute, no more than it beside communication."""
    for entry in PLANS[name]().entries.values():
        found = replay_shared(entry, lengths(entry, 100), lambda busy: float(busy), 8)
        work = other = 0
        for role, program in enumerate(entry.programs):
            for item in program.order:
                length = lengths(entry, 100)(role, item)
                if program.blocks[item.block].lane == "compute":
                    work += length * len(program.workers)
                else:
                    other += length
        makespan = max(end for ends in found.ends for end in ends)
        assert work - 10 <= makespan <= work + other + 10


@pytest.mark.parametrize("name", PLANS)
def test_workers_on_other_nodes_do_not_count(name: str) -> None:
    for entry in PLANS[name]().entries.values():
        found = replay_shared(entry, lengths(entry, 100), lambda busy: float(busy), 1)
        assert found.ends == replay(entry, lengths(entry, 100)).ends


def test_there_are_plans() -> None:
    assert len(PLANS) > 3
