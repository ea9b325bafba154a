"""What the runtime adds to the time that a plan states, and to plain torch: every figure beside its bar.

    python benchmarks/runtime.py [--rows slept,eager,compiled,interlaced,three_f_one_b] [--steps N] [--output FILE]

Prints a table and writes JSON. Where two things are compared their steps are interleaved, and medians count.

*slept*: tasks that only sleep, in a pipeline of four Ray workers, F = B = W = 20 ms, 1F1B; beside it
torch.distributed.pipelining's 1F1B on four gloo ranks. A step of ours is timed by the caller, Ray's part included; one
of torch's inside its ranks, between barriers. *Overhead* is what a step takes beyond the time stated before: by our
plan, which counts the network; torch states none, so for it the least that 1F1B can take with these sleeps,
(m + p - 1)(F + B + W). What both take beyond that least is given as well.

*eager*, *compiled*: a GPT on one worker in this process, AdamW included, beside the same model in plain torch.

*interlaced*, *three_f_one_b*: SuperScaler's plans of time, on slept tasks (``benchmarks/slept_plans.py``).
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from superscaler.api import compile as compile_plan
from superscaler.ir.cluster import Cluster
from superscaler.models.gpt import GPT, Config
from superscaler.runtime.launch import launch
from superscaler.runtime.ops import sleep
from superscaler.transforms.optimize import SGD, AdamW

STAGES, WIDTH, FORWARD, BACKWARD = 4, 8, 20.0, 40.0  # milliseconds; the backward has input and weight gradient


@dataclass(frozen=True)
class Result:
    """One line of the table. ``met`` is None where there is no bar, only a figure beside it."""

    row: str
    what: str
    bar: str
    measured: str
    met: bool | None


def seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


# --- slept tasks -----------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Wide inside, so that stages are cut between layers; the sleep stands behind parameters, so it has a gradient."""

    def __init__(self, nap: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.nap = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nap

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.nap(self.up(x)))


class Slept(nn.Module):
    """Four layers and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(lambda x: sleep(x, FORWARD, BACKWARD)) for _ in range(STAGES)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum()


class Nap(torch.autograd.Function):
    """The same sleep for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        time.sleep(FORWARD / 1000)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        time.sleep(BACKWARD / 1000)
        return grad.clone()


def torch_rank(rank: int, microbatches: int, port: int, commands: Any, times: Any) -> None:
    """One rank of torch.distributed.pipelining: a step per command, until there are no more."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=STAGES)
    example = torch.randn(1, WIDTH, requires_grad=rank > 0)
    output = torch.randn(1, WIDTH, requires_grad=True)
    layer = Layer(Nap.apply)  # pyright: ignore[reportArgumentType]
    stage = PipelineStage(layer, rank, STAGES, torch.device("cpu"), input_args=(example,), output_args=(output,))
    schedule = Schedule1F1B(stage, microbatches, loss_fn=lambda out, _: out.sum())
    x = torch.randn(microbatches, WIDTH)
    given = {0: ((x,), {}), STAGES - 1: ((), {"target": x})}.get(rank, ((), {}))
    while commands.get():
        dist.barrier()
        begin = time.perf_counter()
        schedule.step(*given[0], **given[1])
        dist.barrier()
        if rank == 0:
            times.put(time.perf_counter() - begin)
    dist.destroy_process_group()


@contextmanager
def torch_pipeline(microbatches: int) -> Iterator[Callable[[], float]]:
    """A function that makes one step of torch's pipeline and returns its seconds."""
    context = multiprocessing.get_context("spawn")
    commands, times = [context.Queue() for _ in range(STAGES)], context.Queue()
    port = 29600 + os.getpid() % 1000
    ranks = [
        context.Process(target=torch_rank, args=(rank, microbatches, port, commands[rank], times), daemon=True)
        for rank in range(STAGES)
    ]
    for process in ranks:
        process.start()

    def step() -> float:
        for queue in commands:
            queue.put(True)
        return times.get(timeout=120)

    try:
        yield step
    finally:
        for queue in commands:
            queue.put(False)
        for process in ranks:
            process.join(10)
            process.kill()


def slept(steps: int) -> Iterator[Result]:
    """Pipelines of sleeping tasks."""
    for microbatches in (8, 16):
        yield from slept_pipeline(microbatches, steps)


def slept_pipeline(microbatches: int, steps: int) -> Iterator[Result]:
    model, x = Slept(), torch.randn(microbatches, WIDTH)
    script = f"pipeline:stages={STAGES},microbatches={microbatches}"
    plan = compile_plan(model, (x,), cluster=Cluster.local(STAGES), plan=script, optimizer=SGD(lr=0.0), evaluate=False)
    predicted = plan.entries["train"].certificate.makespan / 1000
    least = (microbatches + STAGES - 1) * (FORWARD + BACKWARD)
    ours: list[float] = []
    theirs: list[float] = []
    with launch(plan, model) as job, torch_pipeline(microbatches) as torch_step:
        for _ in range(2):  # connections are made, code is warm
            job.step(x), torch_step()
        for _ in range(steps):
            theirs.append(torch_step() * 1000)
            ours.append(seconds(lambda: job.step(x)) * 1000)
    measured, beside = statistics.median(ours), statistics.median(theirs)
    off = measured / predicted - 1
    text = f"{measured:.1f} for {predicted:.1f} ms ({off:+.2%}), {steps} steps"
    yield Result("slept", f"m={microbatches}: median step, planned", "within 2 %", text, abs(off) <= 0.02)
    share = max(measured - predicted, 0.0) / (beside - least)
    text = f"{share:.2f} ({measured - predicted:.1f} of {beside - least:.1f} ms)"
    yield Result("slept", f"m={microbatches}: overhead, share of torch's", "≤ 0.25", text, share <= 0.25)
    text = f"{measured - least:.1f} and {beside - least:.1f} ms over {least:.0f}"
    yield Result("slept", f"m={microbatches}: beyond the least, ours, torch's", "", text, None)


# --- no tax ----------------------------------------------------------------------------------------------------------

CONFIG = Config(vocab=4096, context=128, layers=4, hidden=512, heads=8)
BATCH = 8


def taxed(row: str, steps: int) -> Iterator[Result]:
    """A GPT on one worker beside plain torch."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # pyright: ignore[reportPrivateUsage]
    model = GPT(CONFIG)
    ids, labels = (torch.randint(0, CONFIG.vocab, (BATCH, CONFIG.context)) for _ in range(2))
    plan = compile_plan(
        model, (ids, labels), cluster=Cluster.local(1), plan="pipeline", optimizer=AdamW(lr=1e-4), evaluate=False
    )
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4)
    run: Any = torch.compile(plain) if row == "compiled" else plain

    def torch_step() -> float:
        optimizer.zero_grad()
        loss = run(ids, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    with launch(plan, model, backend="inline", compile=row == "compiled") as job:
        for _ in range(2):
            first, second = torch_step(), job.step(ids, labels)
            assert abs(first - second) < 1e-3 * abs(first)
        pairs = [(seconds(torch_step), seconds(lambda: job.step(ids, labels))) for _ in range(steps)]
    ratio = statistics.median(b / a for a, b in pairs)
    a, b = (statistics.median(times) * 1000 for times in zip(*pairs, strict=True))
    name = "torch.compile" if row == "compiled" else "eager torch"
    yield Result(row, f"step, share of {name}'s", "≤ 1.05", f"{ratio:.3f} ({b:.0f} of {a:.0f} ms)", ratio <= 1.05)


def slept_plans(row: str, steps: int) -> Iterator[Result]:
    """SuperScaler's plans of time: see ``benchmarks/slept_plans.py``."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks import slept_plans as plans

    lines = {"interlaced": plans.interlaced, "three_f_one_b": plans.three_f_one_b}[row](steps)
    yield from (Result(row, *line) for line in lines)


def predicted(steps: int) -> Iterator[Result]:
    """What was predicted after profiling, beside what was measured."""
    from prediction import prediction

    yield from (Result("prediction", *line) for line in prediction(steps))


ROWS: dict[str, Callable[[int], Iterator[Result]]] = {
    "slept": slept,
    "eager": lambda steps: taxed("eager", steps),
    "compiled": lambda steps: taxed("compiled", steps),
    "interlaced": lambda steps: slept_plans("interlaced", steps),
    "three_f_one_b": lambda steps: slept_plans("three_f_one_b", steps),
    "prediction": predicted,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, by comma: " + ", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of eager and compiled")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "runtime.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: list[Result] = []
    print(f"{'row':13} {'what':44} {'bar':12} measured")
    for row in options.rows.split(","):
        for result in ROWS[row](options.steps):
            results.append(result)
            verdict = {True: "  met", False: "  MISSED", None: ""}[result.met]
            print(f"{result.row:13} {result.what:44} {result.bar:12} {result.measured}{verdict}", flush=True)
    write(options.output, results, options.rows.split(","))
    return int(any(result.met is False for result in results))


def write(path: Path, results: list[Result], ran: list[str]) -> None:
    """Write the results; those of rows that were not run now stay."""
    if path.exists():
        old = [Result(**entry) for entry in json.loads(path.read_text())["results"]]
        results = [r for r in old if r.row not in ran] + results
        results.sort(key=lambda result: list(ROWS).index(result.row))
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    content = {"machine": machine | {"torch": torch.__version__}, "results": [asdict(result) for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
