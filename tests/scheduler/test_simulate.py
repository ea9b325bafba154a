"""Simulation: Programs replayed in time, on plans small enough to work out by hand and on drawn durations."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.errors import ScheduleError, UsageError
from superscaler.ir.entry import Entry
from superscaler.ir.plan import Plan
from superscaler.ir.program import Item
from superscaler.scheduler.measured import Trace, measured
from superscaler.scheduler.replay import Durations, replay
from superscaler.scheduler.simulate import simulate
from tests.ir.plans_by_hand import in_one_piece, tensor_parallel
from tests.ir.plans_by_hand_more import BY_HAND, pipelined

PLANS = [in_one_piece, tensor_parallel, *BY_HAND]


def by_kind(plan: Plan, entry: str = "train", **microseconds: int) -> Durations:
    """Each item as long as its block's kind says."""
    programs = plan.entries[entry].programs

    def duration(role: int, item: Item) -> int:
        return microseconds.get(programs[role].blocks[item.block].kind, 0)

    return duration


def kinds_and_times(plan: Plan, role: int, **durations: int) -> list[tuple[str, int, int, int]]:
    spans = simulate(plan, durations=by_kind(plan, **durations)).roles[role].spans
    return [(s.kind, s.microbatch, s.start, s.end) for s in spans if s.end > s.start]


def test_tasks_of_one_worker_follow_one_another() -> None:
    plan = in_one_piece()
    count = len([i for i in plan.entries["train"].programs[0].order])
    timeline = simulate(plan, durations=lambda role, item: 7)
    assert timeline.makespan == 7 * count
    assert timeline.bubble == 0.0
    assert [end for *_, end in [(s.start, s.end) for s in timeline.roles[0].spans]] == [
        7 * (i + 1) for i in range(count)
    ]


def test_a_pipeline_of_two_stages_takes_what_can_be_counted() -> None:
    """One micro-batch under way at a time: forward, transfer, the second stage's work, transfer, backward; twice."""
    plan = pipelined(2)
    first = kinds_and_times(plan, 0, forward=10, send=3, backward=20)
    assert [span for span in first if span[0] not in ("send", "recv")] == [
        ("forward", 0, 0, 10), ("backward", 0, 36, 56), ("forward", 1, 56, 66), ("backward", 1, 92, 112),
    ]  # fmt: skip
    assert [span for span in first if span[0] == "send"] == [("send", 0, 10, 13), ("send", 1, 66, 69)]
    second = kinds_and_times(plan, 1, forward=10, send=3, backward=20)
    assert [span for span in second if span[0] == "backward"] == [("backward", 0, 13, 33), ("backward", 1, 69, 89)]


def test_a_receive_is_drawn_as_long_as_its_send() -> None:
    plan = pipelined(2)
    timeline = simulate(plan, durations=by_kind(plan, forward=10, backward=10, send=4))
    sent = sorted((s.start, s.end) for role in timeline.roles for s in role.spans if s.kind == "send")
    received = sorted((s.start, s.end) for role in timeline.roles for s in role.spans if s.kind == "recv")
    assert sent == received


@given(st.data())
@pytest.mark.parametrize("make", PLANS, ids=lambda make: make.__name__)
def test_whatever_the_durations_the_simulated_course_is_possible(make, data) -> None:  # type: ignore[no-untyped-def]
    """Lanes do not overlap, order is kept, and the step is as long as its critical path and no shorter than a lane."""
    plan: Plan = make()
    lengths: dict[tuple[int, Item], int] = {}

    def drawn(role: int, item: Item) -> int:
        if (role, item) not in lengths:
            lengths[role, item] = data.draw(st.integers(0, 50))
        return lengths[role, item]

    timeline = simulate(plan, durations=drawn)
    for number, role in enumerate(timeline.roles):
        compute = [s for s in role.spans if s.lane == "compute"]
        assert all(a.end <= b.start for a, b in pairwise(compute))
        items = plan.entries[timeline.entry].programs[number].order
        assert all(s.end - s.start == drawn(number, items[s.item]) for s in compute)
        assert role.busy.get("compute", 0) == sum(s.end - s.start for s in compute)
        assert all(0 <= busy <= timeline.makespan for busy in role.busy.values())
    chain = [timeline.roles[r].spans[i] for r, i in timeline.critical]
    assert chain[-1].end == timeline.makespan
    assert chain[0].start == 0
    # Nobody on the chain idles: each task begins when the one before is over, a receive runs while its send does.
    assert all(b.start <= a.end <= b.end for a, b in pairwise(chain))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_longer_tasks_never_make_a_shorter_step(forward: int, backward: int, more: int) -> None:
    plan = pipelined(2)
    short = simulate(plan, durations=by_kind(plan, forward=forward, backward=backward, send=2)).makespan
    long = simulate(plan, durations=by_kind(plan, forward=forward + more, backward=backward, send=2)).makespan
    assert short <= long <= short + more * 4


def test_memory_over_time_never_exceeds_state_and_arena_and_ends_lower() -> None:
    for make in PLANS:
        plan = make()
        for role in simulate(plan, durations=lambda role, item: 5).roles:
            assert all(role.state <= level.bytes <= role.state + role.arena for level in role.memory)
            times = [level.time for level in role.memory]
            assert times == sorted(times)


def test_programs_that_wait_for_each_other_are_told() -> None:
    """The second stage wants the second activation before it sends the first gradient, which the first waits for."""
    plan = pipelined(2)
    entry: Entry = plan.entries["train"]
    first, second = entry.programs
    items = {(second.blocks[i.block].kind, i.microbatch): i for i in second.order}
    ahead = [items["recv", 0], items["recv", 1], items["backward", 1]]
    order = (*ahead, *(item for item in second.order if item not in ahead))
    wrong = msgspec.structs.replace(entry, programs=(first, msgspec.structs.replace(second, order=order)))
    with pytest.raises(ScheduleError, match="circle"):
        replay(wrong)


def test_an_unknown_entry() -> None:
    with pytest.raises(UsageError, match="no entry 'tain'"):
        simulate(in_one_piece(), "tain")


def test_measured_times_are_a_timeline_of_each_worker() -> None:
    plan = pipelined(2)
    lengths = {w: len(p.order) for p in plan.entries["train"].programs for w in p.workers}
    tasks = [[(10.0 * i, 10.0 * i + 4) for i in range(lengths[w])] for w in range(plan.workers)]
    timeline = measured(plan, Trace("train", tasks))
    assert timeline.makespan == max(round(t[-1][1]) for t in tasks)
    assert [role.workers for role in timeline.roles] == [(w,) for w in range(plan.workers)]
