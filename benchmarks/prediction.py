"""Predicted against measured: the step time and the peak memory of four models under four plans, on this machine.

A row of ``benchmarks/runtime.py``. By turns each plan runs for some steps, as a job in a process of its own, and is
profiled by ``superscaler profile``; predicted is what that command says. As many rounds of it as fit into some minutes,
since the machine is not the same a minute later, nor one process as fast as the next, which starts as the same: one job
for all rounds is a sample of one. What counts as measured is the mean of the jobs before and after a profile, each its
median step once it has settled. Time: measured over predicted, of these the median round. Memory: state, arena and
largest workspace of every worker of the last job, by :meth:`superscaler.runtime.job.Job.measure_memory`.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import superscaler as ss
from superscaler.models import build

TIME, MEMORY = 0.10, 0.03  # the bars
ROUNDS, LASTING = 5, 300.0  # of each case at least so many, and as many as fit into so many seconds
SETTLING = 3.0  # seconds of steps that do not count: after a profile's processes have ended the first are slower


@dataclass(frozen=True)
class Case:
    """A model with a batch, and the plan it is run under."""

    name: str
    make: Callable[[], tuple[nn.Module, tuple[Any, ...]]]
    plan: str
    workers: int
    loss: Callable[[Any], Any] | None = None

    def build(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """The same weights and batch every time."""
        torch.manual_seed(0)
        return self.make()

    def compile(self) -> ss.Plan:
        model, inputs = self.build()
        return ss.compile(
            model, inputs, cluster=ss.Cluster.local(self.workers), plan=self.plan, loss=self.loss,
            optimizer=ss.AdamW(lr=1e-3, clip_norm=1.0), evaluate=False,
        )  # fmt: skip


def ours(name: str, preset: str, *batch: int, **settings: str) -> tuple[nn.Module, tuple[Any, ...]]:
    model, example = build(name, preset, **settings)
    return model, example(*batch)


def llama() -> tuple[nn.Module, tuple[Any, ...]]:
    """An unmodified Llama of transformers, with its loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    class WithLoss(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, labels=labels).loss

    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=128, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(0, 1024, (16, 128))
    return WithLoss(LlamaForCausalLM(config)), (ids, ids)


CASES = [
    Case("demo", lambda: ours("gpt", "demo", 16), "megatron:tensor=2,pipeline=2,microbatches=4", 4),
    Case("swin", lambda: ours("swin", "swin-t", 4, image="112", window="7"), "pipeline", 1),
    Case("llama", llama, "megatron:tensor=2,microbatches=2", 2),
    Case(
        "t5", lambda: ours("t5", "t5-small", 8, 64, layers="2", vocab="4096"), "pipeline:stages=2,microbatches=4", 2
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Seconds of a step in each round, predicted and measured, and bytes at the peak of each worker likewise."""

    case: Case
    rounds: list[tuple[float, float]]
    unprofiled: float
    peaks: list[tuple[int, int]]
    profiling: float

    @property
    def late(self) -> list[float]:
        """By how much every round took longer than predicted."""
        return [measured / predicted - 1 for predicted, measured in self.rounds]

    @property
    def over(self) -> float:
        """The worst worker's, of its predicted peak."""
        return max((measured / predicted - 1 for predicted, measured in self.peaks), key=abs)


def measure(case: Case, steps: int) -> Found:
    """Run, profile and predict, run; several times."""
    plan = case.compile()
    found: list[tuple[float, float]] = []
    profiling = 0.0
    until = time.perf_counter() + LASTING
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "plan.json"
        plan.save(saved)
        before, memory = ran(case, saved, steps)
        while len(found) < ROUNDS or time.perf_counter() < until:
            began = time.perf_counter()
            predicted = profiled(saved)
            profiling = time.perf_counter() - began
            after, memory = ran(case, saved, steps)
            found.append((predicted, (before + after) / 2))
            before = after
    programs = {worker: p for p in plan.entries["train"].programs for worker in p.workers}
    peaks = [(programs[worker].peak, peak) for worker, peak in enumerate(memory)]
    return Found(case, found, ss.simulate(plan).seconds, peaks, profiling)


def ran(case: Case, plan: Path, steps: int) -> tuple[float, list[int]]:
    """Seconds of a step and bytes at the peak of each worker, of a job in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as process:
        return process.submit(run, CASES.index(case), plan, steps).result()


def run(case: int, saved: Path, steps: int) -> tuple[float, list[int]]:
    """As :func:`ran`, in this process; the case by its place in :data:`CASES`, as its makers cannot be pickled."""
    model, inputs = CASES[case].build()
    plan = ss.Plan.load(saved)
    with ss.launch(plan, model, backend="ray" if plan.workers > 1 else "inline") as job:
        seconds = typical(job, inputs, steps)
        return seconds, [sizes["peak"] for sizes in job.measure_memory(*inputs)]


def profiled(plan: Path) -> float:
    """Seconds of a step as ``superscaler profile`` predicts them."""
    command = [sys.executable, "-m", "superscaler", "profile", str(plan), "--json"]
    told = subprocess.run([*command, "-o", str(plan.with_name("profile.json"))], check=True, stdout=subprocess.PIPE)
    return json.loads(told.stdout)["predicted_seconds"]


def typical(job: Any, inputs: tuple[Any, ...], steps: int) -> float:
    """Seconds: the median of so many steps, once they have gone on for :data:`SETTLING`."""
    until = time.perf_counter() + SETTLING
    while time.perf_counter() < until:
        job.step(*inputs)
    times: list[float] = []
    for _ in range(steps):
        began = time.perf_counter()
        job.step(*inputs)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def prediction(steps: int, only: str = "") -> Iterator[tuple[str, str, str, bool]]:
    """Per case, two lines: (what, bar, measured, met)."""
    for case in CASES:
        if only and case.name != only:
            continue
        found = measure(case, steps)
        late = statistics.median(found.late)
        each = ", ".join(f"{b * 1000:.0f} ms for {a * 1000:.0f} predicted" for a, b in found.rounds)
        text = f"{late:+.1%} ({each}; datasheet {found.unprofiled * 1000:.0f}), profiled in {found.profiling:.0f} s"
        yield f"{case.name}: step, {case.workers} workers", f"within {TIME:.0%}", text, abs(late) <= TIME
        top = max(peak for _, peak in found.peaks)
        text = f"{found.over:+.2%} at the worst of {len(found.peaks)} workers (peak {top / 1e6:.1f} MB)"
        yield f"{case.name}: peak memory", f"within {MEMORY:.0%}", text, abs(found.over) <= MEMORY


if __name__ == "__main__":
    for what, bar, measured, met in prediction(10, *sys.argv[1:]):
        print(f"{what:28} {bar:12} {measured}  {'met' if met else 'MISSED'}", flush=True)
