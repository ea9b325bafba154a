"""The slots of any order, judged by the meaning of the options alone: written apart from what makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import ScheduleError, SuperscalerError, UsageError
from superscaler.scheduler import schedules
from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable
from superscaler.scheduler.playground import schedule, to_json

STAGES = {"linear": 1, "v": 2, "interleaved": 2, "bidirectional": 1}
ORDERS = [(name, placement) for name, found in sorted(schedules().items()) for placement in found.placements]
ONE_PASS = [(name, placement) for name, placement in ORDERS if schedules()[name].passes == 1]
Slot = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What the command is asked for."""

    placement: str
    devices: int
    microbatches: int
    costs: dict[str, tuple[int, ...]]
    comm: int
    limit: int | None
    speed: tuple[int, ...]

    @property
    def stages(self) -> int:
        return self.devices * STAGES[self.placement]

    @property
    def problem(self) -> PipelineProblem:
        return PipelineProblem(
            self.stages, self.microbatches, **self.costs, comm=self.comm, max_activations=self.limit,
            devices=self.devices, placement=self.placement, speed=self.speed,
        )  # fmt: skip

    def device(self, stage: int, microbatch: int) -> int:
        if self.placement == "v":
            return min(stage, 2 * self.devices - 1 - stage)
        if self.placement == "bidirectional" and microbatch >= self.microbatches / 2:
            return self.devices - 1 - stage
        return stage % self.devices


def judge(asked: Asked, said: dict[str, Any]) -> None:
    """Every task once, as long as it should be, after what it needs; one at a time on a lane; within memory."""
    slots: list[Slot] = said["slots"]
    tasks = {(s["kind"], s["stage"], s["microbatch"]): s for s in slots if s["lane"] == "compute"}
    wanted = {(k, s, j) for k in asked.costs for s in range(asked.stages) for j in range(asked.microbatches)}
    assert set(tasks) == wanted
    assert len(tasks) == sum(s["lane"] == "compute" for s in slots)
    for (kind, stage, j), slot in tasks.items():
        assert slot["device"] == asked.device(stage, j)
        assert slot["start"] >= 0
        assert slot["end"] - slot["start"] == -(-asked.costs[kind][stage] // asked.speed[slot["device"]])
    for place in {(s["device"], s["lane"]) for s in slots}:
        turns = sorted((s["start"], s["end"]) for s in slots if (s["device"], s["lane"]) == place)
        assert all(a[1] <= b[0] for a, b in pairwise(turns))
    keeps_dependencies(asked, tasks, [s for s in slots if s["lane"] == "comm"])
    for device in range(asked.devices):
        assert asked.limit is None or most_held(s for s in tasks.values() if s["device"] == device) <= asked.limit
    figures_agree(asked, said, tasks.values())


def keeps_dependencies(asked: Asked, tasks: dict[tuple[str, int, int], Slot], sends: list[Slot]) -> None:
    hops = [("forward", s, s + 1) for s in range(asked.stages - 1)]
    hops += [("backward", s, s - 1) for s in range(1, asked.stages)]
    crossing: dict[tuple[int, int, int], list[tuple[Slot, Slot]]] = {}
    for j in range(asked.microbatches):
        for stage in range(asked.stages):
            f, b, w = (tasks[kind, stage, j] for kind in ("forward", "backward", "weight"))
            assert f["end"] <= b["start"] < b["end"] <= w["start"]
        for kind, stage, to in hops:
            a, b = tasks[kind, stage, j], tasks[kind, to, j]
            if a["device"] != b["device"] and asked.comm:
                crossing.setdefault((a["device"], stage, j), []).append((a, b))
            assert a["end"] <= b["start"]
    assert len(sends) == sum(map(len, crossing.values()))
    for (device, stage, j), ends in crossing.items():
        mine = [s for s in sends if (s["device"], s["stage"], s["microbatch"]) == (device, stage, j)]
        for (a, b), send in zip(ends, sorted(mine, key=lambda s: s["start"]), strict=True):  # the forward goes first
            assert (send["kind"], send["end"] - send["start"]) == ("send", asked.comm)
            assert a["end"] <= send["start"] < send["end"] <= b["start"]


def most_held(tasks: Iterable[Slot]) -> int:
    events = [(t["start"], 1) if t["kind"] == "forward" else (t["end"], -1) for t in tasks if t["kind"] != "backward"]
    level = most = 0
    for _, change in sorted(events):
        level += change
        most = max(most, level)
    return most


def figures_agree(asked: Asked, said: dict[str, Any], tasks: Iterable[Slot]) -> None:
    end = max(t["end"] for t in tasks)
    work = sum(t["end"] - t["start"] for t in tasks)
    assert said["makespan"] == end
    assert said["bound"] <= end
    assert said["bubble"] == pytest.approx(1 - work / (asked.devices * end))
    assert said["gap"] == pytest.approx((end - said["bound"]) / end)
    assert (said["status"] == "optimal") == (said["bound"] == end)


@st.composite
def questions(draw: st.DrawFn, placement: str, devices: int, microbatches: int, most: int) -> Asked:
    stages = devices * STAGES[placement]
    cost = st.integers(1, 9)
    costs = st.tuples(*[cost] * stages) | cost.map(lambda each: (each,) * stages)
    return Asked(
        placement,
        devices,
        microbatches,
        {kind: draw(costs) for kind in ("forward", "backward", "weight")},
        draw(st.sampled_from((0, 1, 5, 30))),
        draw(st.none() | st.integers(stages // devices, most)),
        draw(st.tuples(*[st.integers(1, 3)] * devices) | st.just((1,) * devices)),
    )


def made_or_refused(asked: Asked, name: str) -> PipelineTimetable | SuperscalerError:
    """A schedule that is for other shapes, or holds more than there is room for, is refused."""
    try:
        return schedule(asked.problem, order=name)
    except (ScheduleError, UsageError) as refused:
        return refused


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(ONE_PASS), st.integers(1, 5), st.integers(1, 12))
def test_named_orders(data: st.DataObject, order: tuple[str, str], devices: int, microbatches: int) -> None:
    name, placement = order
    asked = data.draw(questions(placement, devices, microbatches, 40))
    table = made_or_refused(asked, name)
    if isinstance(table, PipelineTimetable):
        judge(asked, to_json(table))
    else:
        assert table.hint is not None


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(sorted(STAGES)), st.integers(1, 4), st.integers(1, 6))
def test_solved_ones(data: st.DataObject, placement: str, devices: int, microbatches: int) -> None:
    asked = data.draw(questions(placement, devices, microbatches, 8))
    judge(asked, to_json(schedule(asked.problem, time_limit=0.1)))


def test_each_direction_of_a_bidirectional_pipeline_runs_at_its_own_devices_speed() -> None:
    asked = Asked("bidirectional", 2, 4, dict.fromkeys(("forward", "backward", "weight"), (6, 6)), 0, None, (1, 3))
    said = to_json(schedule(asked.problem, order="chimera"))
    judge(asked, said)
    assert {s["end"] - s["start"] for s in said["slots"] if s["stage"] == 0} == {6, 2}
