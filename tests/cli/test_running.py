"""``superscaler run``: steps of a saved plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superscaler.ir.plan import Plan
from superscaler.scheduler.machine import this_machine
from superscaler.scheduler.profile import profile_path
from tests.cli.conftest import Command

INLINE = ("--backend", "inline", "--steps", "2")


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_steps_are_printed_with_their_loss(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("run", tiny_plan, *INLINE)
    assert said.code == 0, said.err
    assert [line.split()[:3:2] for line in said.out.splitlines()[:2]] == [["step", "loss"], ["step", "loss"]]
    assert "predicted" in said.out


def test_json_is_one_object_and_the_same_seed_gives_the_same_losses(superscaler: Command, tiny_plan: Path) -> None:
    first, again, other = (
        json.loads(superscaler("run", tiny_plan, *INLINE, "--init-seed", seed, "--json").out)
        for seed in ("3", "3", "4")
    )
    assert first["losses"] == again["losses"] != other["losses"]
    assert first["steps"] == len(first["seconds"]) == 2


def test_a_broken_profile_is_told_before_the_first_step_and_not_after_the_last(
    superscaler: Command, tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path))
    kept = profile_path(this_machine(4))
    kept.parent.mkdir(parents=True)
    kept.write_text("{")
    said = superscaler("run", tiny_plan, *INLINE)
    assert said.code == 1
    assert said.out == ""
    assert "is no profile" in said.err


@pytest.mark.parametrize("source", [{}, 5, [], {"name": "gpt", "preset": None, "set": [1], "batch": "8"}])
def test_a_plan_that_says_no_model_says_so(
    source: object, superscaler: Command, tiny_plan: Path, tmp_path: Path
) -> None:
    """A plan file may be anyone's: how its model was asked for is no proven part of it."""
    plan = Plan.load(tiny_plan)
    plan.model["source"] = source
    plan.save(tmp_path / "p.json")
    said = superscaler("run", tmp_path / "p.json", *INLINE)
    assert said.code == 2
    assert "does not say how its model is made" in said.err


def test_whose_code_makes_the_model_is_said(superscaler: Command, tiny_plan: Path, tmp_path: Path) -> None:
    plan = Plan.load(tiny_plan)
    plan.model["source"] = {"name": "their.models:factory", "preset": None, "set": {}, "batch": 8, "seq": None}
    plan.save(tmp_path / "p.json")
    said = superscaler("run", tmp_path / "p.json", *INLINE)
    assert "calling their.models:factory, which the plan names" in said.err
    assert "calling" not in superscaler("run", tmp_path / "p.json", *INLINE, "--data", "stdlib").err


@pytest.mark.parametrize("setting", [{"seed": "z"}, {"lr": "fast"}])
def test_a_plan_with_settings_that_are_no_numbers_says_so(
    setting: dict[str, object], superscaler: Command, tiny_plan: Path, tmp_path: Path
) -> None:
    plan = Plan.load(tiny_plan)
    plan.settings.update(setting)
    plan.save(tmp_path / "p.json")
    said = superscaler("run", tmp_path / "p.json", *INLINE)
    assert said.code in (1, 2)
    assert "Error: " in said.err


def test_a_checkpoint_is_where_the_next_run_starts(superscaler: Command, tiny_plan: Path) -> None:
    text = ("--data", "stdlib")
    run = json.loads(superscaler("run", tiny_plan, *INLINE, *text, "--lr", "0.05", "--checkpoint", "ck", "--json").out)
    assert run["checkpoint"] == "ck"
    assert Path("ck/model.safetensors.index.json").exists()
    later = json.loads(superscaler("run", tiny_plan, *INLINE, *text, "--weights", "ck", "--json").out)
    assert later["losses"][0] < run["losses"][0]


def test_text_files_are_data(superscaler: Command, tiny_plan: Path) -> None:
    Path("a.txt").write_text("to be or not to be, that is the question. " * 20)
    assert superscaler("run", tiny_plan, *INLINE, "--data", "a.txt").code == 0
    Path("short.txt").write_text("to be")
    said = superscaler("run", tiny_plan, *INLINE, "--data", "short.txt")
    assert (said.code, "too few" in said.err) == (1, True)


def test_a_function_is_data(superscaler: Command, tiny_plan: Path) -> None:
    Path("batches.py").write_text(
        "import torch\n"
        "def ones():\n"
        "    while True:\n"
        "        yield torch.ones(8, 32, dtype=torch.long), torch.ones(8, 32, dtype=torch.long)\n"
        "def short():\n"
        "    yield torch.ones(8, 31, dtype=torch.long), torch.ones(8, 31, dtype=torch.long)\n"
        "def floats():\n"
        "    yield torch.ones(8, 32), torch.ones(8, 32, dtype=torch.long)\n"
        "def breaks():\n"
        "    yield from []\n"
        "    raise KeyError('no file')\n"
    )
    assert superscaler("run", tiny_plan, *INLINE, "--data", "batches.py:ones").code == 0
    said = superscaler("run", tiny_plan, *INLINE, "--data", "batches.py:short")
    assert said.code == 1
    assert "InputError: input 'ids' has shape (8, 31), the plan was compiled for (8, 32)" in said.err
    said = superscaler("run", tiny_plan, *INLINE, "--data", "batches.py:breaks")
    assert "KeyError" in said.err
    assert "batches.py:11" in said.err
    assert "Traceback" not in said.err
    assert "dtype float32" in superscaler("run", tiny_plan, *INLINE, "--data", "batches.py:floats").err


def test_measured_times_are_drawn_beside_predicted_ones(superscaler: Command, tiny_plan: Path) -> None:
    assert superscaler("run", tiny_plan, *INLINE, "--trace", "run.json").code == 0
    assert superscaler("show", tiny_plan, "--trace", "run.json", "--html", "t.html").code == 0
    assert "measured" in Path("t.html").read_text()
    Path("run.json").write_text('{"entry": "train", "tasks": [[]]}')
    said = superscaler("show", tiny_plan, "--trace", "run.json", "--html", "t.html")
    assert "the trace is not one of this plan" in said.err


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--weights", "ck", "--init-seed", "1"], "which of them counts", 2),
        (["--steps", "0"], "--steps is 0", 2),
        (["--data", "nowhere.txt"], "no such file", 2),
        (["--backend", "inlin"], "'inlin' is not one of", 2),
        (["--weights", "nowhere"], "CheckpointError", 1),
        (["--trace", "nowhere/last.trace"], "cannot write nowhere/last.trace", 1),
    ],
)
def test_mistakes_are_said_without_a_traceback(
    arguments: list[str], message: str, code: int, superscaler: Command, tiny_plan: Path
) -> None:
    said = superscaler("run", tiny_plan, "--backend", "inline", *arguments)
    assert message in said.err
    assert said.code == code
    assert "Traceback" not in said.err


def test_what_is_read_is_not_written_over(superscaler: Command, tiny_plan: Path) -> None:
    before = tiny_plan.read_bytes()
    for command, option in (("run", "--trace"), ("show", "--perfetto")):
        said = superscaler(command, tiny_plan, option, tiny_plan)
        assert (said.code, "would be written over" in said.err) == (2, True)
    assert tiny_plan.read_bytes() == before


def test_memory_is_a_limit(superscaler: Command, tiny_plan: Path) -> None:
    said = superscaler("run", tiny_plan, *INLINE, "--memory", "0.00001")
    assert said.code == 1
    assert "Traceback" not in said.err
