"""Arguments of another kind than asked for: each is told as a mistake of the caller's, with what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import superscaler as ss
from superscaler.runtime.job import Job

NO_PATHS = [None, {}, 5, b"x", 1.5, [Path("x")], "", "a\0b", "a\ud800"]
NO_PLANS = [None, {}, 5, "gpt.plan.json", ss.Plan]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.fc(x).square().sum()


MODEL = Net()
X = nn.init.ones_(MODEL.fc.weight.new_empty(2, 4))


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    plan = ss.compile(MODEL, (X,), cluster=ss.Cluster.local(1), optimizer=ss.SGD())
    with ss.launch(plan, MODEL, backend="inline") as job:
        yield job


def told(act: Callable[[], object], *names: str) -> None:
    """An error of ours, raised for the argument and not by something deeper, that says what to try."""
    with pytest.raises(ss.SuperscalerError) as caught:
        act()
    assert caught.value.hint
    assert all(name in str(caught.value) for name in names)
    str(caught.value).encode()


@pytest.mark.parametrize("wrong", NO_PATHS, ids=repr)
def test_no_path(job: Job, wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (
        job.plan.save, ss.Plan.load, ss.Cluster.load, job.save_checkpoint, job.load_checkpoint,
    ):  # fmt: skip
        told(lambda act=act: act(wrong), "no path")
    if wrong is not None:
        told(lambda: ss.profile(job.plan, path=wrong), "no path")
        if wrong != {}:
            told(lambda: ss.launch(job.plan, MODEL, backend="inline", weights=wrong), "no path")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["", "file/x", "x" * 300, "directory"])
def test_a_place_where_nothing_can_be_written(job: Job, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory" / "x").mkdir(parents=True)
    there = sorted(tmp_path.rglob("*"))
    for act in (job.plan.save, job.save_checkpoint, job.load_checkpoint, ss.Plan.load, ss.Cluster.load):
        told(lambda act=act: act(tmp_path / wrong), str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("wrong", NO_PLANS, ids=repr)
def test_no_plan(job: Job, wrong: Any) -> None:
    for act in (ss.check, ss.simulate, ss.explain, ss.launch, ss.profile):
        told(lambda act=act: act(wrong), "no plan")
    if wrong is not None:
        told(lambda: ss.simulate(job.plan, profile=wrong), "no profile")
        told(lambda: ss.simulate(job.plan, wrong or [1]), "no entry")
    told(lambda: job.results(wrong, X), "no entry")


@pytest.mark.parametrize("wrong", [{}, [1], 5, "x", float("nan")], ids=repr)
def test_arguments_of_another_kind(job: Job, wrong: Any) -> None:
    for name in ("cluster", "plan", "loss", "optimizer", "dtype", "batch_norm", "profile", "progress"):
        if (name, wrong) != ("batch_norm", 5):
            given = {"cluster": ss.Cluster.local(1), name: wrong}
            told(lambda given=given: ss.compile(MODEL, (X,), **given))
    for name in ("backend", "nan", "timeout"):
        if (name, wrong) != ("timeout", 5):
            told(lambda name=name: ss.launch(job.plan, MODEL, **{"backend": "inline", name: wrong}), name)
    told(lambda: ss.launch(job.plan, wrong, backend="inline"), "no module")
    told(lambda: ss.launch(job.plan, MODEL, backend="inline", weights={"fc.weight": wrong}), "fc.weight")
    told(lambda: job.step(wrong))
    told(lambda: ss.explain(job.plan, "²"))
    told(lambda: ss.explain(job.plan, "9" * 5000))
