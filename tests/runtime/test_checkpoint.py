"""Checkpoints: readable by anyone, loadable into any plan, whole or not there."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import small_plans as plans
import torch
from safetensors.torch import load_file

from superscaler.errors import CheckpointError
from superscaler.ir.plan import Plan, StateTensor
from superscaler.runtime import checkpoint, files
from superscaler.runtime.job import Job
from superscaler.runtime.launch import launch
from superscaler.runtime.replacing import replace_directory

PLANS: dict[str, Callable[[], Plan]] = {
    "whole": plans.whole,
    "split": lambda: plans.tensor_parallel(sizes=(4, 2)),
    "staged": plans.pipelined,
}


def started(plan: Plan, steps: int = 0, seed: int = 0) -> Job:
    job = launch(plan, plans.Reference(seed), backend="inline")
    for _ in range(steps):
        job.step(plans.batch())
    return job


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    with started(plans.tensor_parallel(), steps=2) as job:
        job.save_checkpoint(tmp_path / "one")
    yield tmp_path / "one"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_plain_safetensors_and_torch_can_read_it(saved: Path) -> None:
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"w1", "b1", "w2"}
    tensors = {n: load_file(saved / f)[n] for n, f in index["weight_map"].items()}
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    model, reference = plans.Reference(seed=5), plans.Reference()
    reference.steps(2)
    model.load_state_dict(tensors)
    assert all(plans.close(p, reference.get_parameter(n)) for n, p in model.named_parameters())


@pytest.mark.parametrize("into", PLANS)
def test_it_goes_on_under_any_plan(saved: Path, into: str) -> None:
    expected = plans.Reference().steps(4)
    with started(PLANS[into](), seed=9) as job:
        job.load_checkpoint(saved)
        assert job.steps == 2
        assert [job.step(plans.batch()) for _ in range(2)] == pytest.approx(expected[2:], rel=1e-9)


def test_a_new_one_replaces_the_old_one(saved: Path) -> None:
    with started(plans.whole(), steps=3) as job:
        job.save_checkpoint(saved)
    with started(plans.whole()) as job:
        job.load_checkpoint(saved)
        assert job.steps == 3


def test_many_shards(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD", 100)
    with started(plans.whole(), steps=3) as job:
        job.save_checkpoint(saved)
        expected = job.state_dict()
    assert len(list(saved.glob("*.safetensors"))) == 3
    with started(plans.tensor_parallel(), seed=9) as job:
        job.load_checkpoint(saved)
        assert all(torch.equal(t, expected[n]) for n, t in job.state_dict().items())


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    monkeypatch.setattr(files, "_write_bytes", full_disk)
    with started(plans.whole(), steps=3) as job, pytest.raises(CheckpointError, match="the disk is full"):
        job.save_checkpoint(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {here!r})
    import small_plans as plans
    from superscaler.runtime import files
    from superscaler.runtime.launch import launch

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with launch(plans.whole(), plans.Reference(), backend="inline") as job:
        job.step(plans.batch())
        files._write_bytes = killed
        job.save_checkpoint({path!r})
"""


@pytest.mark.slow
def test_a_crash_in_the_middle_leaves_the_old_one(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    script = textwrap.dedent(KILLED.format(here=str(Path(__file__).parent), path=str(saved)))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    with started(plans.whole()) as job:
        job.save_checkpoint(saved)  # and sweeps away what the crash left


def test_a_truly_full_disk(tmp_path: Path) -> None:
    full = Path("/dev/full")  # every write to it fails with ENOSPC
    if not full.exists():
        pytest.skip("this machine has no /dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        files.write(full, [("x", (1 << 16,), "float32", 1 << 18)], lambda _: [torch.zeros(1 << 16)])
    assert caught.value.errno == errno.ENOSPC


def test_what_a_crash_left_is_swept_away(saved: Path) -> None:
    (saved.parent / ".one.part-dead").mkdir()
    with started(plans.whole()) as job:
        job.save_checkpoint(saved)


def test_a_directory_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with started(plans.whole()) as job:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="is no checkpoint"):
                job.save_checkpoint(tmp_path)
            assert (tmp_path / "thesis.tex").exists()
            (tmp_path / "job.json").write_text("{}")


def test_what_a_link_leads_to_is_replaced(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(saved)
    with started(plans.whole(), steps=3) as job:
        job.save_checkpoint(tmp_path / "elsewhere" / "link")
        assert [each.is_symlink() for each in (tmp_path / "elsewhere").iterdir()] == [True]
        job.load_checkpoint(saved)
        assert job.steps == 3


def renamed(plan: Plan, **changes: dict[str, object]) -> Plan:
    """The plan with changes to its state tensors, by name."""
    state = tuple(msgspec.structs.replace(t, **changes.get(t.name, {})) for t in plan.state)
    return msgspec.structs.replace(plan, state=state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "job.json").unlink(), "is no checkpoint"),
        (lambda p: (p / "job.json").write_text("{"), "job.json is damaged"),
        (lambda p: (p / "model.safetensors.index.json").write_text("[]"), "index.json is damaged"),
        (lambda p: next(p.glob("*.safetensors")).unlink(), "cannot be read: No such file"),
        (lambda p: next(p.glob("*.safetensors")).write_bytes(b"short"), "is damaged"),
        (lambda p: truncate(next(p.glob("*.safetensors"))), "the data is cut off"),
        (lambda p: rename(p, "w1", "w9"), "has no 'w9', though the index says so"),
    ],
)
def test_damage_is_named_and_nothing_changes(saved: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(saved)
    with started(plans.whole()) as job:
        before = job.state_dict()
        with pytest.raises(CheckpointError, match=message):
            job.load_checkpoint(saved)
        assert all(torch.equal(before[n], t) for n, t in job.state_dict().items())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def rename(directory: Path, old: str, new: str) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{old}"', f'"{new}"'))


def write_file(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    rows = [(n, tuple(t.shape), "float64", t.numel() * 8) for n, t in tensors.items()]
    files.write(path / "model.safetensors", rows, lambda n: [tensors[n]])


def test_other_models_are_told_by_name(tmp_path: Path) -> None:
    given = plans.weights()
    cases = [
        ({n: t for n, t in given.items() if n != "b1"}, "has no 'b1'"),
        ({**given, "b7": given["b1"]}, "has 'b7', which the plan has not"),
        ({**given, "b1": given["b1"][:2]}, r"'b1' has shape \(2,\) in checkpoint .* and \(6,\) in the plan"),
    ]
    for tensors, message in cases:
        write_file(tmp_path, tensors)
        with pytest.raises(CheckpointError, match=message):
            launch(plans.whole(), weights=tmp_path, backend="inline")


def test_weights_of_one_file_start_a_job(tmp_path: Path) -> None:
    write_file(tmp_path, plans.weights())
    with launch(plans.tensor_parallel(), weights=tmp_path, backend="inline") as job:
        assert job.step(plans.batch()) == pytest.approx(plans.Reference().steps(1)[0], rel=1e-9)


def test_optimizer_state_travels_and_is_missed_by_name(tmp_path: Path) -> None:
    plain = plans.whole()
    extra = StateTensor("w1.exp_avg", (plans.I, plans.H), "float64", "optimizer", plain.state[0].layout, 0.0)
    plan = msgspec.structs.replace(plain, state=(*plain.state, extra))
    with started(plan) as job:
        job._crew.workers[0].state["w1.exp_avg"].fill_(7)  # type: ignore[union-attr]
        job.save_checkpoint(tmp_path / "with")
    with started(plan) as job:
        job.load_checkpoint(tmp_path / "with")
        assert job.optimizer_state()["w1.exp_avg"].unique().tolist() == [7]
    with started(plain) as job:
        job.load_checkpoint(tmp_path / "with")  # a plan without an optimizer has no use for it
        job.save_checkpoint(tmp_path / "without")
    with started(plan) as job, pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        job.load_checkpoint(tmp_path / "without")


def test_tied_names_are_all_there(tmp_path: Path) -> None:
    plan = msgspec.structs.replace(plans.whole(), model={"aliases": {"head": "w2"}})
    with launch(plan, weights=plans.weights(), backend="inline") as job:
        assert torch.equal(job.state_dict()["head"], job.state_dict()["w2"])
        job.save_checkpoint(tmp_path / "tied")
    found = load_file(next((tmp_path / "tied").glob("*.safetensors")))
    assert torch.equal(found["head"], found["w2"])
    with launch(plan, weights=plans.weights(3), backend="inline") as job:
        job.load_checkpoint(tmp_path / "tied")
        assert torch.equal(job.state_dict()["head"], found["w2"])


def test_directories_change_places(tmp_path: Path) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what").write_text(name)
    replace_directory(tmp_path / "new", tmp_path / "place")
    assert (tmp_path / "place" / "what").read_text() == "new"
    assert (tmp_path / "new" / "what").read_text() == "place"
    replace_directory(tmp_path / "new", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "what").read_text() == "place"
