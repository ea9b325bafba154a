"""``superscaler check``, ``simulate`` and ``show``: plan files, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from superscaler.ir import plan_file
from superscaler.ir.plan import Plan
from tests.cli.conftest import Command


def test_check_says_what_it_has_proven(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("check", tiny_plan, "--strict")
    assert said.code == 0
    assert "values, deadlock, memory and schedule proven" in said.out


def test_check_names_what_is_wrong(superscaler: Command, tiny_plan: Path, tmp_path: Path) -> None:
    """A plan whose file is as it was written, but whose first worker forgets a communication."""
    plan = Plan.load(tiny_plan)
    entry = plan.entries["train"]
    program = entry.programs[0]
    sends = [i for i, item in enumerate(program.order) if program.blocks[item.block].kind == "send"]
    order = tuple(item for i, item in enumerate(program.order) if i != sends[0])
    programs = (msgspec.structs.replace(program, order=order), *entry.programs[1:])
    wrong = msgspec.structs.replace(
        plan, entries={**plan.entries, "train": msgspec.structs.replace(entry, programs=programs)}
    )
    plan_file.save(wrong, tmp_path / "wrong.json")
    for command in (["check"], ["simulate"], ["show"]):
        said = superscaler(*command, tmp_path / "wrong.json")
        assert said.code == 1
        assert said.err.startswith("CheckError: ")
        assert said.out == ""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is truncated"),
        (lambda data: data.replace(b'"micro"', b'"macro"', 1), "was edited"),
        (lambda data: data.replace(b'plan": 1', b'plan": 2', 1), "is of a newer version"),
        (lambda data: b"", "is empty"),
        (lambda data: b"PK\x03\x04", "is not a plan file"),
    ],
    ids=["truncated", "edited", "newer", "empty", "something else"],
)
def test_a_damaged_file_is_told_from_a_wrong_plan(damage, message, superscaler, tiny_plan, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "p.json").write_bytes(damage(tiny_plan.read_bytes()))
    said = superscaler("check", tmp_path / "p.json")
    assert said.code == 1
    assert said.err.startswith("PlanFileError: ")
    assert message in said.err


def test_a_file_that_is_not_there(superscaler: Command) -> None:
    assert "cannot read nowhere.json" in superscaler("show", "nowhere.json").err


def test_simulate_predicts_every_entry(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("simulate", tiny_plan)
    assert said.code == 0
    assert "train: " in said.out
    assert "eval: " in said.out
    assert "workers 2-3" in said.out
    assert "critical path: " in said.out


def test_the_json_of_simulate_adds_up(superscaler: Command, tiny_plan: Path) -> None:
    train = json.loads(superscaler("simulate", tiny_plan, "--json").out)["entries"]["train"]
    assert train["bound_seconds"] <= train["planned_seconds"]
    assert train["peak_bytes"] == max(role["peak_bytes"] for role in train["roles"])
    for role in train["roles"]:
        assert role["bubble"] == pytest.approx(1 - role["busy_seconds"]["compute"] / train["seconds"], abs=1e-9)
        assert role["state_bytes"] + role["arena_bytes"] <= role["peak_bytes"]
    path = train["critical_path"]
    assert path[-1]["end"] == train["seconds"]
    assert all(task["start"] <= task["end"] for task in path)


def test_show_says_what_the_plan_is(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("show", tiny_plan)
    assert "2 micro-batches" in said.out
    assert "workers 0-1 F0" in said.out
    assert "backward" in said.out


def test_show_draws(superscaler: Command, tiny_plan: Path, tmp_path: Path) -> None:
    files = [tmp_path / "t.png", tmp_path / "t.html", tmp_path / "t.trace"]
    said = superscaler("show", tiny_plan, "--png", files[0], "--html", files[1], "--perfetto", files[2])
    assert said.code == 0
    assert said.out.count("wrote ") == 3
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<canvas" in files[1].read_text()
    assert json.loads(files[2].read_text())["traceEvents"]


@pytest.mark.parametrize(("option", "name"), [("--png", "t.html"), ("--html", "t.png"), ("--png", "t.jpeg")])
def test_a_drawing_is_called_what_it_is(
    option: str, name: str, superscaler: Command, tiny_plan: Path, tmp_path: Path
) -> None:
    said = superscaler("show", tiny_plan, option, tmp_path / name)
    assert said.code == 2
    assert f"try: {option} {tmp_path / 't'}.{option[2:]}" in said.err
    assert not any(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("show", tiny_plan, "--png", "/nowhere/t.png")
    assert said.code == 1
    assert "cannot write /nowhere/t.png" in said.err


def test_an_entry_that_the_plan_has_not(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("show", tiny_plan, "--entry", "trian")
    assert said.code == 2
    assert "did you mean 'train'" in said.err
