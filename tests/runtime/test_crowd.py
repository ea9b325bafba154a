"""What it costs to share cores, from what a crew has seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.crowd import Seen, Sharing

seconds = st.floats(1e-3, 1.0)


def test_bodies_alone() -> None:
    found = Sharing.of({1: Seen(0.1, {}), 2: Seen(0.12, {}), 4: Seen(0.25, {})})
    assert found.slowdown == pytest.approx({1: 1.0, 2: 1.2, 4: 2.5})


def test_who_waits_in_a_collective_leaves_its_core_to_others() -> None:
    """Bodies that would take twice as long by themselves take less beside collectives, and tasks by what both take."""
    seen = {1: Seen(0.1, {}), 2: Seen(0.1, {"all_reduce 2 8": 0.1}), 4: Seen(0.15, {"all_reduce 2 8": 0.2})}
    assert Sharing.of(seen).slowdown == pytest.approx({1: 1.0, 2: 1.0, 4: 0.35 / 0.2})


def test_nothing_to_compute() -> None:
    assert Sharing.of({1: Seen(0.0, {}), 2: Seen(0.0, {})}).slowdown == {1: 1.0, 2: 1.0}


@given(
    seconds,
    st.lists(st.tuples(st.floats(1.0, 8.0), seconds, seconds), min_size=2, max_size=2),
    st.floats(0.5, 2.0),
    st.integers(1, 5),
)
def test_tasks_beside_each_other_take_what_was_seen(
    body: float, crews: list[tuple[float, float, float]], other: float, times: int
) -> None:
    """Bodies and collectives as long as alone, by the factor of so many workers, are as long as these saw them: also
    where each collective was measured anew when the machine was faster or slower, and is carried out several times."""
    seen = {1: Seen(body, {})}
    for busy, (longer, pairs, all_of_them) in zip((2, 4), crews, strict=True):
        moves = {"all_reduce 2 8": pairs} | ({"all_reduce 4 8": all_of_them} if busy == 4 else {})
        seen[busy] = Seen(body * longer, moves)
    found, whole = Sharing.of(seen), seen[4]
    anew = {key: seconds * other / times for key, seconds in whole.moves.items()}
    met = [*anew] * times
    alone = found.without(anew, met)
    predicted = found.slowdown[4] * (body + sum(alone[key] for key in met))
    real = whole.bodies + sum(whole.moves.values())
    assert predicted == pytest.approx(real) or (found.slowdown[4] == 1.0 and predicted > real)


def test_collectives_that_only_other_roles_have() -> None:
    found = Sharing.of({1: Seen(0.1, {}), 2: Seen(0.2, {})})
    assert found.without({"all_reduce 2 8": 0.3}, []) == pytest.approx({"all_reduce 2 8": 0.15})


def test_runs_are_seen_by_their_means() -> None:
    """One that was left alone, for groups do not divide the crew, knows nothing of their collectives."""
    each = [Seen(1.0, {"all_reduce 2 8": 2.0}), Seen(2.0, {"all_reduce 2 8": 4.0}), Seen(6.0, {})]
    assert Seen.mean(each) == Seen(3.0, {"all_reduce 2 8": 3.0})
