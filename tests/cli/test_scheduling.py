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


def test_a_picture(superscaler: Command, tmp_path: Path) -> None:
    said = superscaler("schedule", "--stages", "2", "--microbatches", "3", "--png", tmp_path / "s.png")
    assert said.code == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "4", "--microbatches", "8", "--order", "zbv"], "did you mean 'zb_v'"),
        (["--stages", "4", "--microbatches", "8", "--forward", "0"], "forward of stage 0 is 0"),
        (["--stages", "4", "--microbatches", "8", "--max-activations", "-1"], "max_activations of device 0 is -1"),
        (["--stages", "4", "--microbatches", "8", "--placement", "w"], "placement"),
        (["--stages", "4"], "--microbatches"),
    ],
)
def test_mistakes_are_said(arguments: list[str], message: str, superscaler: Command) -> None:
    said = superscaler("schedule", *arguments)
    assert said.code != 0
    assert message in said.err
