"""``superscaler schedule``: the options of issue and playground, as printed and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.golden import assert_golden


def test_a_named_schedule_as_a_grid(superscaler: Command) -> None:
    said = superscaler("schedule", "--stages", "3", "--microbatches", "4", "--order", "1f1b", "--comm", "2")
    assert said.code == 0
    assert_golden(said.out.partition("; seed")[0] + "\n", "schedule_1f1b.txt")


def test_a_solved_schedule_as_json(superscaler: Command) -> None:
    said = superscaler("schedule", "--stages", "4", "--microbatches", "8", "--max-activations", "4", "--json")
    table = json.loads(said.out)
    assert (table["status"], table["makespan"], table["bound"], table["gap"]) == ("optimal", 270, 270, 0.0)
    assert len(table["slots"]) == 3 * 4 * 8
    assert set(table["slots"][0]) == {"device", "lane", "kind", "stage", "microbatch", "start", "end"}


def test_costs_from_a_file(superscaler: Command, tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text('{"forward": [10, 30], "speed": [1, 2]}')
    said = superscaler("schedule", "--stages", "2", "--microbatches", "3", "--costs", costs, "--json")
    slots = json.loads(said.out)["slots"]
    assert {s["end"] - s["start"] for s in slots if s["kind"] == "forward" and s["stage"] == 1} == {15}


@pytest.mark.parametrize("name", ["s.png", "s.PNG", "s", "png"])
def test_a_picture(name: str, superscaler: Command, tmp_path: Path) -> None:
    said = superscaler("schedule", "--stages", "2", "--microbatches", "3", "--png", tmp_path / name)
    assert said.code == 0
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["s.jpg", "s.svg", "s.xyz"])
def test_a_file_that_would_not_open_as_the_picture_it_is(name: str, superscaler: Command, tmp_path: Path) -> None:
    said = superscaler("schedule", "--stages", "2", "--microbatches", "3", "--png", tmp_path / name)
    assert said.code == 2
    assert f"try: --png {tmp_path / 's.png'}" in said.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "4", "--microbatches", "8", "--order", "zbv"], "did you mean 'zb_v'"),
        (["--stages", "4", "--microbatches", "8", "--forward", "0"], "forward of stage 0 is 0"),
        (["--stages", "4", "--microbatches", "8", "--max-activations", "-1"], "max_activations of device 0 is -1"),
        (["--stages", "4", "--microbatches", "8", "--max-activations", "0"], "max_activations of device 0 is 0"),
        (["--stages", "4", "--microbatches", "8", "--placement", "w"], "placement"),
        (["--stages", "7", "--microbatches", "8", "--placement", "v"], "two stages on every device: 7 are odd"),
        (["--stages", "8", "--microbatches", "8", "--devices", "3"], "8 stages on 3 devices"),
        (["--stages", "8", "--microbatches", "8", "--weight", "-2"], "weight of stage 0 is -2"),
        (["--stages", "8", "--microbatches", "8", "--comm", "-1"], "comm is -1"),
        (["--stages", "8", "--microbatches", "8", "--forward", str(10**30)], "ticks"),
        (["--stages", "8", "--microbatches", "8", "--forward", "1.5"], "--forward"),
        (["--stages", "8", "--microbatches", "8", "--time-limit", "-1"], "time limit: -1"),
        (["--stages", "8", "--microbatches", "8", "--time-limit", "nan"], "time limit: nan"),
        (["--stages", "1000000", "--microbatches", "8"], "1000000 stages"),
        (["--stages", "8", "--microbatches", "1000000000", "--json"], "too many"),
        (["--stages", "8", "--microbatches", "1000000000", "--order", "1f1b"], "too many"),
        (["--stages", "8", "--microbatches", "1000000000", "--comm", "100"], "too many"),
        (["--stages", "16", "--microbatches", "8", "--placement", "v", "--max-activations", "1"], "memory[0]=1"),
        (["--stages", "4"], "--microbatches"),
    ],
)
def test_mistakes_are_said(arguments: list[str], message: str, superscaler: Command) -> None:
    said = superscaler("schedule", *arguments)
    assert said.code != 0
    assert message in said.err


@pytest.mark.parametrize("limit", [[], ["--max-activations", "8"], ["--max-activations", "1000000000"]])
def test_any_number_of_microbatches_is_solved_where_the_schedule_repeats(
    limit: list[str], superscaler: Command
) -> None:
    said = superscaler("schedule", "--stages", "8", "--microbatches", "1000000000", *limit)
    assert said.code == 0
    assert "too many to draw" in said.out
    assert "optimal: makespan 30000000070" in said.out


@pytest.mark.parametrize("comm", ["0", "30"])
def test_no_time_at_all_returns_the_constructive_schedule(comm: str, superscaler: Command) -> None:
    said = superscaler(
        "schedule", "--stages", "8", "--microbatches", "16", "--max-activations", "4", "--comm", comm,
        "--time-limit", "0", "--json",
    )  # fmt: skip
    table = json.loads(said.out)
    assert said.code == 0
    assert table["status"] == "time_limit"
    assert table["makespan"] == table["baseline"]["makespan"] > table["bound"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read costs"),
        (b"{", "cannot read costs"),
        (b"\xff\x00\x81", "cannot read costs"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "cannot read costs"),
        (b'{"foward": [1, 5]}', "unknown entry 'foward'"),
        (b'{"forward": []}', "not a list of integers"),
        (b'{"forward": [1, 2], "speed": [1, 1], "forward": [3, 4]}', "entry 'forward' comes twice"),
        (b'{"forward": null}', "not a list of integers"),
        (b'{"forward": [Infinity, 1]}', "not a list of integers"),
        (b'{"forward": [' + b"9" * 5000 + b", 1]}", "cannot read costs"),
        (b'{"forward": [1000000000000, 1]}', "at most"),
        (b'{"forward": [1, "2"]}', "not a list of integers"),
        (b'{"forward": [true, 1]}', "not a list of integers"),
        (b'{"forward": [NaN, 1]}', "not a list of integers"),
        (b'{"forward": [1e3, 1]}', "not a list of integers"),
        (b'{"forward": [-1, 5]}', "forward of stage 0 is -1"),
        (b'{"forward": [1, 2, 3]}', "3 entries for 2 stages"),
        (b'{"speed": [0, 1]}', "speed of device 0 is 0"),
        (b'{"speed": [1]}', "1 entries for 2 devices"),
    ],
)
def test_broken_cost_files(content: bytes, message: str, superscaler: Command, tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    costs.write_bytes(content)
    said = superscaler("schedule", "--stages", "2", "--microbatches", "3", "--costs", costs)
    assert said.code in (1, 2)
    assert message in said.err
    assert "Traceback" not in said.err
