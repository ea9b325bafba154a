"""The command's pure function: slots, --json, --costs, both views."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import ScheduleError, UsageError
from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.playground import read_costs, schedule, to_json


def test_json_says_what_the_issue_asks_for() -> None:
    found = to_json(schedule(PipelineProblem(4, 8, comm=1, max_activations=4)))
    assert {"status", "makespan", "bound", "gap", "bubble", "seconds", "slots"} <= set(found)
    assert (found["status"], found["makespan"], found["bound"], found["gap"]) == ("optimal", 282, 282, 0.0)
    assert found["bubble"] == pytest.approx(1 - 240 / 282)
    assert json.loads(json.dumps(found)) == found
    table = schedule(PipelineProblem(4, 8, comm=1, max_activations=4))
    said = (table.status, table.makespan, table.bound, table.gap, table.bubble, table.slots)
    assert said == tuple(found[name] for name in ("status", "makespan", "bound", "gap", "bubble", "slots"))
    keys = {"device", "lane", "kind", "stage", "microbatch", "start", "end"}
    assert all(set(slot) == keys for slot in found["slots"])
    assert sum(slot["kind"] == "send" for slot in found["slots"]) == 2 * 3 * 8


@settings(max_examples=25, deadline=None)
@given(
    placement=st.sampled_from(["linear", "v", "interleaved"]),
    devices=st.integers(1, 4),
    microbatches=st.integers(1, 6),
    comm=st.integers(0, 12),
    spare=st.none() | st.integers(0, 3),
)
def test_slots_never_meet_and_keep_their_dependencies(
    placement: str, devices: int, microbatches: int, comm: int, spare: int | None
) -> None:
    stages = devices * (1 if placement == "linear" else 2)
    limit = None if spare is None else stages // devices + spare
    problem = PipelineProblem(
        stages, microbatches, 7, 9, 4, comm=comm, max_activations=limit, devices=devices, placement=placement
    )
    table = schedule(problem, time_limit=1.0)
    found = table.slots
    assert table.makespan == max(int(slot["end"]) for slot in found if slot["lane"] == "compute")
    for place in {(slot["device"], slot["lane"]) for slot in found}:
        spans = sorted((int(s["start"]), int(s["end"])) for s in found if (s["device"], s["lane"]) == place)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
    if limit is not None:
        for device in range(devices):
            events = [(int(s["start"]), 1) for s in found if s["device"] == device and s["kind"] == "forward"]
            events += [(int(s["end"]), -1) for s in found if s["device"] == device and s["kind"] == "weight"]
            level = 0
            for _, change in sorted(events):
                level += change
                assert level <= limit


def test_costs_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"forward": [1, 2], "speed": [1, 2]}')
    assert read_costs(path) == {"forward": (1, 2), "speed": (1, 2)}
    path.write_text('{"forwards": [1]}')
    with pytest.raises(UsageError, match="forwards"):
        read_costs(path)
    path.write_text('{"forward": [1.5]}')
    with pytest.raises(ScheduleError, match="list of integers"):
        read_costs(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_costs(tmp_path / "missing.json")
