"""Plan files: what is written is read again, and what was cut off, edited or made by a newer version is told."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import msgspec
import pytest

from superscaler.errors import CheckError, PlanFileError
from superscaler.ir import plan_file
from superscaler.ir.plan import Plan
from tests.ir.plans_by_hand import in_one_piece, tensor_parallel
from tests.ir.plans_by_hand_more import BY_HAND

replace = msgspec.structs.replace


@pytest.mark.parametrize("make", [in_one_piece, tensor_parallel, *BY_HAND], ids=lambda make: make.__name__)
def test_a_plan_is_read_as_it_was_written(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plan: Plan = make()
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan


def test_equal_plans_have_equal_files() -> None:
    assert plan_file.to_bytes(tensor_parallel()) == plan_file.to_bytes(tensor_parallel())


def test_a_change_of_one_step_changes_one_line() -> None:
    before = plan_file.to_bytes(tensor_parallel(2)).decode().splitlines()
    plan = tensor_parallel(2)
    entry = plan.entries["train"]
    program = entry.programs[0]
    order = (replace(program.order[0], end=7), *program.order[1:])
    entry = replace(entry, programs=(replace(program, order=order),))
    after = plan_file.to_bytes(replace(plan, entries={"train": entry})).decode().splitlines()
    assert len(before) == len(after)
    differing = [line for line, other in zip(before, after, strict=True) if line != other]
    assert len(differing) == 2  # the digest, and the step


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_arguments_that_json_cannot_say(number: float, tmp_path: Path) -> None:
    """A mask is filled with minus infinity."""
    plan = in_one_piece()
    entry = plan.entries["train"]
    rows = entry.definitions[0].rows
    rows = (replace(rows[0], args=("$0", "$1", [number, None])), *rows[1:])
    changed = replace(entry, definitions=(replace(entry.definitions[0], rows=rows), *entry.definitions[1:]))
    data = plan_file.to_bytes(replace(plan, entries={"train": changed}))
    again = plan_file.from_bytes(data, Plan).entries["train"].definitions[0].rows[0].args
    assert str(again) == str(("$0", "$1", [number, None]))


def test_loading_checks(tmp_path: Path) -> None:
    plan = in_one_piece()
    program = plan.entries["train"].programs[0]
    wrong = replace(plan.entries["train"], programs=(replace(program, arena=0),))
    plan_file.save(replace(plan, entries={"train": wrong}), tmp_path / "p.json")
    with pytest.raises(CheckError, match="outside the arena"):
        Plan.load(tmp_path / "p.json")


# --- files that are not as they were written --------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    in_one_piece().save(tmp_path / "p.json")
    return tmp_path / "p.json"


@pytest.mark.parametrize("kept", [0, 1, 10, 60, 500, -1, -4])
def test_a_truncated_file(written: Path, kept: int) -> None:
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(PlanFileError, match=r"truncated|empty|edited") as caught:
        Plan.load(written)
    assert "p.json" in caught.value.what


def test_an_edited_file(written: Path) -> None:
    written.write_text(written.read_text().replace('"mesh":"m"', '"mesh":"n"', 1))
    with pytest.raises(PlanFileError, match="was edited"):
        Plan.load(written)


def test_an_edited_digest(written: Path) -> None:
    lines = written.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace("a", "b").replace("0", "1")
    written.write_text("".join(lines))
    with pytest.raises(PlanFileError, match="was edited"):
        Plan.load(written)


def test_a_newer_file(written: Path) -> None:
    written.write_text(written.read_text().replace('"superscaler plan": 1', '"superscaler plan": 2', 1))
    with pytest.raises(PlanFileError, match="newer version") as caught:
        Plan.load(written)
    assert "its format is 2; this superscaler reads formats up to 1" in str(caught.value)


@pytest.mark.parametrize("content", [b"{}", b"\x89PNG\r\n", b"hello", b'{"a": 1}', b"\x80\x04pickle"])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(PlanFileError, match="not a plan file"):
        Plan.load(tmp_path / "x")


def test_line_ends_of_another_system_do_no_harm(written: Path) -> None:
    written.write_bytes(written.read_bytes().replace(b"\n", b"\r\n"))
    assert Plan.load(written) == in_one_piece()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PlanFileError, match=r"cannot read .*none\.json"):
        Plan.load(tmp_path / "none.json")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = written.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlanFileError, match="No space left on device"):
        tensor_parallel().save(written)
    assert written.read_bytes() == old
    assert [path.name for path in written.parent.iterdir()] == ["p.json"]


def test_an_interrupt_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = written.read_bytes()

    def interrupted(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tensor_parallel().save(written)
    assert written.read_bytes() == old
    assert [path.name for path in written.parent.iterdir()] == ["p.json"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanFileError, match="cannot write"):
        in_one_piece().save(tmp_path / "none" / "p.json")


def test_a_saved_file_can_be_read_by_others(written: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert written.stat().st_mode & 0o777 == 0o666 & ~mask
