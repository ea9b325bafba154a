"""Everything once, in seconds: compile, check, save, load, simulate, a training step, a checkpoint, a picture."""

from __future__ import annotations

from pathlib import Path

import torch

import superscaler as ss
from superscaler import models
from superscaler.viz.html import page
from superscaler.viz.plan_timeline import chart


def test_everything_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = models.build("gpt", "tiny")
    ids, labels = example(8)
    plan = ss.compile(
        model,
        (ids, labels),
        cluster=ss.Cluster.local(4),
        plan=ss.plans.megatron(tensor=2, pipeline=2, microbatches=2),
        optimizer=ss.AdamW(lr=1e-2, clip_norm=1.0),
    )
    assert ss.check(plan).tasks > 0
    plan.save(tmp_path / "p.json")
    loaded = ss.Plan.load(tmp_path / "p.json")
    assert loaded == plan
    assert str(loaded).startswith("plan of GPT (34.7 k parameters) for 4 workers")

    timeline = ss.simulate(loaded)
    assert timeline.makespan >= loaded.entries["train"].certificate.bound
    assert "worker 3" in page(chart(timeline))

    before = [p.clone() for p in model.parameters()]
    expected = model(ids, labels).item()
    with ss.launch(loaded, model, backend="inline") as job:
        assert abs(job.step(ids, labels) - expected) < 1e-5
        assert set(job.gradients()) == {name for name, _ in model.named_parameters()}
        assert job.step(ids, labels) < expected
        evaluated = job.evaluate(ids, labels)["loss"]
        job.save_checkpoint(tmp_path / "checkpoint")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    with ss.launch(loaded, backend="inline", weights=tmp_path / "checkpoint") as job:
        assert job.evaluate(ids, labels)["loss"] == evaluated
