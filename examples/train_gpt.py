"""A byte-level GPT learns the source of Python's standard library on four workers, beside plain torch on one device.

python examples/train_gpt.py [--steps N] [--backend ray|inline] [--output DIR]

Both see the same batches from the same weights. The plan: 2-way tensor × 2-stage pipeline, 4 micro-batches, AdamW with
clipping. Written to ``--output``: the plan, a picture of its timeline, and a checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler import models
from superscaler.runtime.data import read_text, standard_library, text_batches
from superscaler.viz.plan_timeline import chart
from superscaler.viz.png import write_png

PLAN = "megatron:tensor=2,pipeline=2,microbatches=4"
LR, CLIP = 1e-3, 1.0


def plain_torch(model: nn.Module) -> Iterator[float]:
    """Send it a batch: the loss of that step, as anyone would write it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loss = float("nan")
    while True:
        batch: dict[str, Tensor] = yield loss
        optimizer.zero_grad()
        value = model(**batch)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        loss = value.item()


def main(steps: int, backend: str, output: Path, preset: str, batch: int) -> float:
    """Train; returns the largest difference between the two losses, relative."""
    torch.manual_seed(0)
    model, example = models.build("gpt", preset)
    optimizer = ss.AdamW(lr=LR, clip_norm=CLIP)
    plan = ss.compile(model, example(batch), cluster=ss.Cluster.local(4), plan=PLAN, optimizer=optimizer)
    print(plan)
    print(ss.check(plan))
    output.mkdir(parents=True, exist_ok=True)
    plan.save(output / "gpt.plan.json")
    print("measuring this machine ...", flush=True)
    profile = ss.profile(plan, path=output / "profile.json", links=backend == "ray")
    timeline = ss.simulate(plan, profile=profile)
    write_png(chart(timeline, title=f"GPT, {PLAN}"), output / "timeline.png")

    reference = plain_torch(copy.deepcopy(model))
    next(reference)
    batches = text_batches(plan.entries["train"], read_text(standard_library()))
    worst, times, alone = 0.0, [], []
    print("\nstep  plain torch    4 workers  difference  torch s  4 workers s")
    with ss.launch(plan, model, backend=backend) as job:
        for step in range(1, steps + 1):
            inputs = next(batches)
            began = perf_counter()
            loss = job.step(**inputs)
            times.append(perf_counter() - began)
            began = perf_counter()
            expected = reference.send(inputs)
            alone.append(perf_counter() - began)
            worst = max(worst, abs(loss - expected) / abs(expected))
            print(
                f"{step:4d}  {expected:11.6f}  {loss:11.6f}  {abs(loss - expected):10.1e}  {alone[-1]:7.3f}"
                f"  {times[-1]:11.3f}",
                flush=True,
            )
        job.save_checkpoint(output / "checkpoint")
    print(
        f"\nlargest relative difference {worst:.1e}"
        f"\na step: predicted {timeline.seconds:.3f} s, measured {statistics.median(times):.3f} s (median; plain torch "
        f"on one device {statistics.median(alone):.3f} s)"
        f"\nplan        {output / 'gpt.plan.json'}\ntimeline    {output / 'timeline.png'}"
        f"\ncheckpoint  {output / 'checkpoint'}"
    )
    return worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backend", choices=("ray", "inline"), default="ray")
    parser.add_argument("--output", type=Path, default=Path("out/demo"))
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--batch", type=int, default=16)
    main(**vars(parser.parse_args()))
