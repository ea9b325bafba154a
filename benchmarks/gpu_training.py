"""The largest Swin image and GPT sequence that train on a device, four ways, and their step times.

Ways: ``co_shard`` (ours), plain torch, ``torch.compile``, and ``torch.utils.checkpoint`` around every block. All train
in float32 with AdamW, one sample per step. A size trains if its step ends with a finite loss.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from coshard import LongGPT
from gpu_kernels import first_line
from gpu_machine import GIB, Machine
from torch import nn
from torch.utils.checkpoint import checkpoint
from vtensor import Result

import superscaler as ss
from superscaler import models
from superscaler.errors import InfeasiblePlan, OutOfMemory
from superscaler.trace.building import without_memory

Inputs = tuple[torch.Tensor, ...]
Step = Callable[[], float]
Trained = tuple[Step, Callable[[], int]]  # a step, its loss; and the most bytes that were in use
WAYS = ("co_shard", "plain", "compile", "checkpoint")
PARTS = 8
RATE = 1e-4


@dataclass(frozen=True)
class Subject:
    """What is trained: ``model(size)`` and ``inputs(size)``; sizes are multiples of ``grain``, from ``first`` on."""

    what: str
    first: int
    grain: int
    most: int
    model: Callable[[int], nn.Module]
    inputs: Callable[[int], Inputs]


def swin(machine: Machine) -> Subject:
    """The smallest of the co-shard experiment's, with fewer layers in its third stage; windows of 48."""
    sizes = {"hidden": 512, "heads": (16, 32, 64, 128), "window": 48, "depths": (2, 2, 2, 2)}
    if machine.quick:
        sizes = {"hidden": 16, "heads": (8, 16), "window": 4, "depths": (2, 2)}

    def built(image: int) -> tuple[nn.Module, models.ExampleInputs]:
        return models.build("swin", "coshard-32", image=image, **sizes)

    def inputs(image: int) -> Inputs:
        return without_memory(lambda: built(image))[1](1)

    full = Subject("image", 768, 192, 6144, lambda image: built(image)[0], inputs)
    return Subject("image", 32, 16, 64, full.model, inputs) if machine.quick else full


def gpt(machine: Machine) -> Subject:
    """4 layers of 1,024, 16 heads, attention written out: its scores grow with the square of the sequence."""

    def inputs(tokens: int) -> Inputs:
        ids = torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(0))
        return ids, ids.roll(-1, 1)

    if machine.quick:
        return Subject("sequence", 32, 16, 64, lambda tokens: LongGPT(32, 8, 2), inputs)
    return Subject("sequence", 8192, 2048, 1 << 17, lambda tokens: LongGPT(1024, 16, 4), inputs)


SUBJECTS: dict[str, Callable[[Machine], Subject]] = {"swin": swin, "gpt": gpt}


def largest(name: str, way: str, machine: Machine) -> Iterator[Result]:
    """Sizes doubled until one does not train, then halved intervals; each is shown as it is known."""
    subject = SUBJECTS[name](machine)
    row, best, least_failed, size = f"{name}-{way}", 0, subject.most + subject.grain, subject.first
    torch.set_float32_matmul_precision("high")
    while size and machine.left() > 0:
        outcome = attempt(subject, way, size, machine)
        yield Result(row, f"{subject.what} {size}", "", outcome if isinstance(outcome, str) else shown(outcome), None)
        if isinstance(outcome, str):
            least_failed = size
        else:
            best = size
        size = following(subject, best, least_failed)
    bound = f"below {least_failed}" if least_failed <= subject.most else "the most that is tried"
    yield Result(row, f"largest {subject.what}", "", f"{best or 'none'} ({bound})", None)


def following(subject: Subject, best: int, least_failed: int) -> int:
    """The next size to try; 0 when there is none."""
    middle = (best + least_failed) // 2 // subject.grain * subject.grain
    doubled = 2 * best if best and 2 * best < least_failed else middle
    return doubled if best < doubled < least_failed else 0


@dataclass(frozen=True)
class Found:
    """Seconds of a step, and bytes of the device at its peak."""

    seconds: float
    peak: int


def shown(found: Found) -> str:
    return f"trains, {found.seconds:.3f} s a step, peak {found.peak / GIB:.2f} GiB"


def attempt(subject: Subject, way: str, size: int, machine: Machine) -> Found | str:
    """A step's figures, or why there are none."""
    make = partial(ours, parts=PARTS) if way == "co_shard" else partial(torchs, way=way)
    gc.collect()
    if machine.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(machine.device)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = make(subject, size, machine)
            step, peak = next(made)
        losses = [step()]
        times = []
        while len(times) < 3 and (not times or machine.left() > 2 * times[-1]):
            times.append(machine.seconds(lambda: losses.append(step())))
        if not all(map(math.isfinite, losses)):
            return f"its loss is {losses[-1]}"
        return Found(statistics.median(times), peak())
    except (torch.OutOfMemoryError, OutOfMemory) as error:
        return f"out of memory: {first_line(error)}"
    except InfeasiblePlan as error:
        return f"does not fit, says the compiler: {first_line(error)}"


def torchs(subject: Subject, size: int, machine: Machine, way: str) -> Iterator[Trained]:
    """Eager, compiled, or with every block recomputed."""
    with machine.device:
        model = subject.model(size)
    inputs = [x.to(machine.device) for x in subject.inputs(size)]
    if way == "checkpoint":
        for block in (m for m in model.modules() if type(m).__name__ == "Block"):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    torch._dynamo.reset()  # another size is another program, not one of any size
    run = torch.compile(model, dynamic=False) if way == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def step() -> float:
        optimizer.zero_grad()
        loss = run(*inputs)
        loss.backward()
        optimizer.step()
        return loss.item()

    yield step, lambda: torch.cuda.max_memory_allocated(machine.device) if machine.cuda else 0


def ours(subject: Subject, size: int, machine: Machine, parts: int) -> Iterator[Trained]:
    """Compiled without memory, then launched in this process on weights that were drawn on the device."""
    inputs = subject.inputs(size)
    cluster = ss.Cluster.preset("h200", devices=1, memory=machine.free() / GIB)
    optimizer, plan_name = ss.AdamW(lr=RATE), f"co_shard:parts={parts}"
    fake = without_memory(lambda: subject.model(size))
    plan = ss.compile(fake, inputs, cluster=cluster, plan=plan_name, optimizer=optimizer, evaluate=False)
    with machine.device:
        model = subject.model(size)
    job = ss.launch(plan, model, backend="inline")
    del model
    with job:
        yield lambda: job.step(*inputs), lambda: job.memory()[0]["most_mapped"]
