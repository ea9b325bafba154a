"""What ``print(plan)`` shows."""

from __future__ import annotations

import msgspec
import pytest

from superscaler.ir.entry import Certificate
from superscaler.ir.plan import Plan
from superscaler.ir.summary import bytes_text, count_text, summary
from tests.ir.plans_by_hand_more import pipelined


def timed(plan: Plan) -> Plan:
    """Every compute task takes 100 µs, one after the other on its worker."""
    entry = plan.entries["train"]
    programs = []
    for program in entry.programs:
        now, order = 0, []
        for item in program.order:
            takes = 100 if program.blocks[item.block].lane == "compute" else 0
            order.append(msgspec.structs.replace(item, start=now, end=now + takes))
            now += takes
        programs.append(msgspec.structs.replace(program, order=tuple(order)))
    certificate = Certificate("feasible", 1000, 800, 0.2, 1100, "1f1b", "compute of device 0", 0, 0.5)
    entry = msgspec.structs.replace(entry, programs=tuple(programs), certificate=certificate)
    return msgspec.structs.replace(plan, entries={"train": entry}, model={"name": "Net"})


def test_roles_bubble_peak_bound_and_gap() -> None:
    plan = timed(pipelined(2))
    found = summary(plan).entries[0]
    assert [role.workers for role in found.roles] == [(0,), (1,)]
    assert [role.bubble for role in found.roles] == pytest.approx([0.5, 0.7])
    assert found.bubble == pytest.approx(0.6)
    text = str(plan)
    assert "plan of Net (36 parameters) for 2 workers" in text
    assert "train: 0.001 s a step (solve, feasible; bound 0.0008 s, gap 20.0%), 2 micro-batches, bubble 60.0%" in text
    assert "worker 1: " in text


def test_discovered_rules_are_counted() -> None:
    plan = msgspec.structs.replace(pipelined(2), assumptions=("custom.op: b -> b",))
    assert "rests on 1 discovered rules" in str(plan)


@pytest.mark.parametrize(("count", "text"), [(999, "999"), (34_656, "34.7 k"), (175e9, "175 B"), (1.8e12, "1.8 T")])
def test_counts_in_short(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (41 << 20, "41 MiB"), (1000 << 30, "1,000 GiB"), (2 << 40, "2 TiB")],
)
def test_bytes_have_a_fitting_unit(count: int, text: str) -> None:
    assert bytes_text(count) == text
