"""SuperScaler's plans of time, on tasks that only sleep: what they save, and whether what is simulated is measured.

*interlaced*: an embedding, layers and a head in the proportions of a t5 preset, each weighed by its operations; beside
it 1F1B with the embedding on the first stage and the head, alone, on the last. *three_f_one_b*: layers that run three
times per micro-batch, of which the last has a gradient; beside it the same work as flushed phases: the forwards
without gradient as pipelines of their own, each run to its end, then 1F1B.

Plans are compiled with what communication takes on this machine as measured, so that what is simulated can be compared.
The tasks of 3F1B and what stands beside it are short, so what their bodies take beside sleeping is measured, too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import superscaler as ss
from superscaler.api import compile as compile_plan
from superscaler.ir.cluster import Cluster
from superscaler.ir.plan import Plan
from superscaler.ir.rules import rule_for
from superscaler.models import t5
from superscaler.runtime.job import Job
from superscaler.runtime.launch import launch
from superscaler.runtime.ops import sleep_each
from superscaler.runtime.profile import measure_blocks
from superscaler.runtime.worker import WorkerOptions
from superscaler.scheduler.cost import operations
from superscaler.scheduler.profile import Profile
from superscaler.trace import trace
from superscaler.transforms.optimize import SGD

WIDTH = 8
FORWARD, BACKWARD = 1, 2
"""What a backward costs, in forwards of the same."""


class Line(NamedTuple):
    """What is compared, the bar, what was found, whether it was met (None: no bar)."""

    what: str
    bar: str
    measured: str
    met: bool | None


def nap(x: Tensor, milliseconds: float) -> Tensor:
    """``x``, after a sleep of so many milliseconds per row, however its columns are split."""
    each = milliseconds / x.shape[-1]
    return sleep_each(x, FORWARD * each, BACKWARD * each)


class Layer(nn.Module):
    """Wide inside, so that stages are cut between layers; the sleep stands behind parameters, so it has a gradient."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.up, self.down, self.milliseconds = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), milliseconds

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nap(self.up(x), self.milliseconds))


# --- interlaced ------------------------------------------------------------------------------------------------------

WORKERS, MICROBATCHES, SPREAD = 8, 16, 500.0
"""``WORKERS``: fewer than the 32 of the experiment, which is to the advantage of 1F1B. ``SPREAD``: milliseconds that a
forward of one micro-batch takes each worker if all is spread evenly. Long, because workers that share two cores take
milliseconds for what takes the devices of such a model microseconds."""
WORDS = 64
LONG_STEPS = 2
"""Timed steps at most: one takes half a minute."""


class Shares(NamedTuple):
    """Of a preset's operations, the shares of embedding, layers and head."""

    embedding: float
    layers: float
    head: float


def shares(preset: str) -> Shares:
    """Of one forward over a sample; what a lookup costs is its additions, one per element. Layers are counted once."""
    config = t5.PRESETS[preset]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = t5.T5(replace(config, layers=1))
        graph = trace(model, t5.example_inputs(config, 1), {}, mode="eval").graph
    found = {"embedding": 0.0, "layers": 0.0, "head": 0.0}
    for op in graph.ops:
        rule = rule_for(op, graph)
        if any(part.isdigit() for part in op.module.split(".")):
            found["layers"] += config.layers * operations(op, rule)
        elif rule.family == "matmul":
            found["head"] += operations(op, rule)
        elif rule.family == "gather" and graph.tensor[op.inputs[0]].shape[0] == config.vocab:
            found["embedding"] += graph.tensor[op.outputs[0]].numel
    total = sum(found.values())
    return Shares(*(amount / total for amount in found.values()))


class Huge(nn.Module):
    """An embedding, ``layers`` layers and a head that sleep ``milliseconds`` between them, in given shares."""

    def __init__(self, layers: int, milliseconds: float, parts: Shares) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.Sequential(*(Layer(milliseconds * parts.layers / layers) for _ in range(layers)))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.embedding_nap, self.head_nap = milliseconds * parts.embedding, milliseconds * parts.head

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.layers(nap(self.words(ids), self.embedding_nap))
        return F.cross_entropy(nap(self.head(x), self.head_nap), labels)


def ends_apart(stages: int, microbatches: int) -> ss.PlanScript:
    """1F1B with the embedding on the first stage, the head and the loss on the last, the layers on those before it."""

    def plan(p: ss.Planner) -> None:
        head = p.find("head", op="linear")[0]
        last = [head, *p.after(head)]
        names = {op.name for op in last}
        rest = [op for op in p.whole.ops if op.name not in names]
        for stage, device in zip(p.cut(*p.runs(rest, stages - 1), last), range(stages), strict=True):
            p.assign(stage, [device])
        p.microbatches(microbatches)

    return plan


def interlaced(steps: int) -> Iterator[Line]:
    """Interlaced beside 1F1B."""
    links = communication(interlaced_and_1f1b("vocab-2m", WORKERS, None, spread=0.0)[1])
    for preset, workers in (("vocab-512k", 4), ("vocab-1024k", 8), ("vocab-1536k", 16), ("vocab-2m", 32)):
        _, ours, theirs = interlaced_and_1f1b(preset, workers, links)
        text = f"{planned(theirs) / planned(ours):.2f} × ({planned(theirs):.0f} to {planned(ours):.0f} ms)"
        yield Line(f"{preset} on {workers}, simulated: saved", "", text, None)
    model, ours, theirs = interlaced_and_1f1b("vocab-2m", WORKERS, links)
    ids = torch.randint(0, WORDS, (MICROBATCHES,))
    mine, beside = (
        median_step(plan, model, min(steps, LONG_STEPS), lambda job: job.step(ids, ids)) for plan in (ours, theirs)
    )
    text = f"{beside / mine:.2f} × ({beside:.0f} to {mine:.0f} ms)"
    yield Line(f"vocab-2m on {WORKERS}: saved over 1F1B", "≥ 1.8 ×", text, beside / mine >= 1.8)
    yield as_simulated("vocab-2m: interlaced", mine, planned(ours))
    yield as_simulated("vocab-2m: 1F1B beside it", beside, planned(theirs))


def interlaced_and_1f1b(
    preset: str, workers: int, links: Profile | None, *, spread: float = SPREAD
) -> tuple[nn.Module, Plan, Plan]:
    """A model in the proportions of ``preset`` with both plans."""
    model = Huge(2 * workers, workers * spread, shares(preset))
    ids = torch.randint(0, WORDS, (MICROBATCHES,))
    scripts = ss.plans.interlaced(workers, 1, MICROBATCHES), ends_apart(workers, MICROBATCHES)
    ours, theirs = (compiled(model, (ids, ids), script, workers, links) for script in scripts)
    return model, ours, theirs


# --- 3F1B ------------------------------------------------------------------------------------------------------------

STAGES, CYCLES, SAMPLES, MILLISECONDS = 4, 3, 16, 40.0


class Recycling(nn.Module):
    """Layers that run ``cycles`` times, each on what the last left; only the last has a gradient."""

    def __init__(self, layers: int, milliseconds: float, cycles: int) -> None:
        super().__init__()
        self.layers, self.cycles = nn.Sequential(*(Layer(milliseconds) for _ in range(layers))), cycles

    def forward(self, x: Tensor) -> Tensor:
        last = torch.zeros_like(x)
        for _ in range(self.cycles):
            last = self.layers(x + last.detach())
        return last.sum()


def three_f_one_b(steps: int) -> Iterator[Line]:
    """3F1B beside flushed phases of the same work."""
    x = torch.randn(SAMPLES, WIDTH)
    model, once = (Recycling(STAGES, MILLISECONDS, cycles) for cycles in (CYCLES, 1))
    quick = Recycling(STAGES, 0.0, 1)
    links = communication(compiled(quick, (x,), ss.plans.pipeline(STAGES, SAMPLES), STAGES, None))
    ours = compiled(model, (x,), ss.plans.three_f_one_b(STAGES, SAMPLES), STAGES, links)
    phases = compiled(once, (x,), ss.plans.pipeline(STAGES, SAMPLES), STAGES, links, evaluate=True)

    def flushed(job: Job) -> None:
        for _ in range(CYCLES - 1):
            job.evaluate(x)
        job.step(x)

    work = SAMPLES * MILLISECONDS * (CYCLES * FORWARD + BACKWARD)  # of each stage
    simulated = rehearsed(ours, links)["train"]
    apart = rehearsed(phases, links)
    mine = median_step(ours, model, steps, lambda job: job.step(x))
    beside = median_step(phases, once, steps, flushed)
    least = ours.entries["train"].certificate.bound / 1000
    over = planned(ours) / least - 1
    yield Line(
        "planned, over its lower bound", "≤ 2 %", f"{planned(ours):.1f} for {least:.1f} ms ({over:+.2%})", over <= 0.02
    )
    bubbles = [1 - work / total for total in (mine, beside)]
    text = f"{bubbles[0]:.1%} and {bubbles[1]:.1%} (its bound: {1 - work / least:.1%})"
    yield Line("bubble, beside that of flushed phases", "below", text, bubbles[0] < bubbles[1])
    yield as_simulated("3F1B", mine, simulated)
    yield as_simulated("flushed phases beside it", beside, apart["train"] + (CYCLES - 1) * apart["eval"])


# --- both ------------------------------------------------------------------------------------------------------------


def communication(plan: Plan) -> Profile:
    """What communication takes between the workers of a plan (without sleeps) on this machine, measured."""
    with tempfile.TemporaryDirectory() as folder:
        found = ss.profile(plan, path=Path(folder) / "profile.json", repeats=1)
    return msgspec.structs.replace(found, ops={}, blocks={})


def compiled(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    script: ss.PlanScript,
    workers: int,
    links: Profile | None,
    *,
    evaluate: bool = False,
) -> Plan:
    """The plan; the optimizer's learning rate is 0, so that all steps are alike."""
    return compile_plan(
        model,
        inputs,
        cluster=Cluster.local(workers),
        plan=script,
        optimizer=SGD(lr=0.0),
        evaluate=evaluate,
        profile=links,
    )


def rehearsed(plan: Plan, links: Profile) -> dict[str, float]:
    """Milliseconds of a run of each entry, simulated with its task bodies as measured on this machine."""
    bodies = measure_blocks(plan, WorkerOptions(), repeats=1)
    profile = msgspec.structs.replace(
        links, blocks=bodies.seconds, crowd={plan.workers: 1.0}
    )  # who sleeps is in nobody's way
    return {name: ss.simulate(plan, name, profile=profile).makespan / 1000 for name in plan.entries}


def planned(plan: Plan) -> float:
    """Milliseconds of a step, as its plan has it."""
    return ss.simulate(plan, "train").makespan / 1000


def median_step(plan: Plan, model: nn.Module, steps: int, act: Callable[[Job], object]) -> float:
    """Milliseconds that the caller of Ray workers sees."""
    taken: list[float] = []
    with launch(plan, model) as job:
        act(job)  # connections are made, code is warm
        for _ in range(steps):
            begin = time.perf_counter()
            act(job)
            taken.append((time.perf_counter() - begin) * 1000)
    return statistics.median(taken)


def as_simulated(what: str, measured: float, simulated: float) -> Line:
    off = measured / simulated - 1
    text = f"{measured:.1f} for {simulated:.1f} ms ({off:+.2%})"
    return Line(f"{what}: step, simulated", "within 2 %", text, abs(off) <= 0.02)
