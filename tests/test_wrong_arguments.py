"""Arguments of another kind than asked for: each is told as a mistake of the caller's, with what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.runtime.job import Job
from superscaler.runtime.memory import Arena, Pool
from superscaler.runtime.serving.kv_cache import KVCache
from superscaler.runtime.serving.kv_layout import KVLayout

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


KINDS = [None, "2", 1.5, {0.5: 1}, object(), [1.5], [None], [[1]], "words", np.ones(2), torch.ones(2), ss.Plan]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool("host", budget=1 << 20, chunk=1 << 12) as pool:
        yield pool


@pytest.mark.parametrize("wrong", KINDS, ids=lambda wrong: type(wrong).__name__)
def test_memory_of_another_kind(pool: Pool, wrong: Any) -> None:
    before = pool.stats()
    a, arena = pool.reserve(1 << 16), Arena(pool, 1 << 16)
    a.extend(1 << 13)
    number: list[Callable[[Any], object]] = [
        lambda x: Pool(budget=x), lambda x: Pool(chunk=x), lambda x: Arena(pool, x), pool.reserve, a.extend,
        a.extend_ahead, a.trim, lambda x: a.share(a, x), lambda x: a.share(a, 1, x), lambda x: a.hold(0, x),
        lambda x: a.hold(x, 8), lambda x: a.writable(0, x), lambda x: a.is_writable(x, 8), arena.reclaim,
        lambda x: a.tensor((1,), torch.int8, x), lambda x: arena.acquire(x, 1), lambda x: arena.acquire(0, x),
        lambda x: arena.release(x, 1), lambda x: arena.view(x, (1,), torch.int8),
    ]  # fmt: skip
    other: list[Callable[[Any], object]] = [
        lambda x: Arena(x, 1), lambda x: a.share(x, 1), pool.add_reclaimer, lambda x: a.tensor(x, torch.int8),
        lambda x: a.tensor((1,), x), lambda x: arena.tensor(0, (1,), x), lambda x: arena.view(0, x, torch.int8),
        lambda x: a.share_chunks([x]),
    ]  # fmt: skip
    for act in (*number, *other, *((lambda x: pool.reserve(1, x),) if not isinstance(wrong, str) else ())):
        told(lambda act=act: act(wrong))
    assert a.size == 1 << 13
    a.free()
    arena.free()
    assert pool.stats().physical == before.physical


@pytest.mark.parametrize("wrong", KINDS, ids=lambda wrong: type(wrong).__name__)
def test_caches_of_another_kind(pool: Pool, wrong: Any) -> None:
    layout = KVLayout(layers=2, heads=1, dim=8)
    cache, strange = KVCache(pool, layout, 64), KVCache(pool, layout, 64)
    sequence, guest = cache.create([1, 2]), strange.create()
    sequence.append([1, 2])
    for act in (
        lambda x: KVCache(x, layout, 64), lambda x: KVCache(pool, x, 64), lambda x: KVCache(pool, layout, x),
        lambda x: KVCache(pool, layout, 64, ahead=x), lambda x: KVCache(pool, layout, 64, block=x),
        lambda x: KVLayout(1, 1, 1, dtype=x), cache.create, sequence.append, sequence.keys, sequence.values,
        lambda x: cache.batch([sequence], x), lambda x: cache.batch([sequence, x], 0), lambda x: cache.batch(x, 0),
        lambda _: cache.batch([guest], 0),
    ):  # fmt: skip
        told(lambda act=act: act(wrong))
    assert (sequence.length, sequence.tokens) == (2, [1, 2])
    for several in ((3,), np.array([3]), torch.tensor([3]), range(3, 4)):
        sequence.append(several)
    assert sequence.tokens == [1, 2, 3, 3, 3, 3]
    assert {*map(type, sequence.tokens)} == {int}
    sequence.free()
    guest.free()
