"""``superscaler run``: steps of a plan on its workers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from superscaler.cli.console import Progress, clean_stdout, print_json, refuse_place, writing
from superscaler.errors import UsageError
from superscaler.ir.cluster import bytes_of

if TYPE_CHECKING:
    from superscaler.cli.batches import Batch
    from superscaler.ir.plan import Plan
    from superscaler.runtime.job import Job


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan file, as compile-plan writes it.")],
    steps: Annotated[int, typer.Option(help="How many training steps.")] = 10,
    data: Annotated[
        str,
        typer.Option(
            help="example (random batches), stdlib (Python's source), a text file or directory, or script.py:function."
        ),
    ] = "example",
    weights: Annotated[Path | None, typer.Option(help="Start from a checkpoint or a Hugging Face directory.")] = None,
    init_seed: Annotated[int | None, typer.Option(help="Start from random weights (0 by default).")] = None,
    backend: Annotated[Literal["ray", "inline"], typer.Option(help="An actor per worker, or one process.")] = "ray",
    lr: Annotated[float | None, typer.Option(help="The learning rate, instead of the plan's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Write a checkpoint here after the last step.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write the times of the last step's tasks, for `show --trace`.")
    ] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of state and arena that a worker may take.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run training steps of a plan, and say what they cost beside what was predicted."""
    if weights is not None and init_seed is not None:
        raise UsageError("--weights and --init-seed: which of them counts?", hint="state one of them")
    if steps < 1:
        raise UsageError(f"--steps is {steps}", hint="1 or more")
    from superscaler.api import simulate
    from superscaler.cli.batches import batches_of
    from superscaler.cli.costs import costs_of
    from superscaler.ir.plan import Plan
    from superscaler.runtime import checkpoint as checkpoints

    with Progress() as progress, clean_stdout(as_json):
        progress(f"reading and checking {file}")
        plan = Plan.load(file)
        _trains(plan)
        _say_what_is_called(plan, data)
        used = costs_of("auto", plan.cluster, plan.workers)  # now, as the place below: not after the last step
        batches = batches_of(plan, data)
        if checkpoint is not None:
            checkpoints.refuse_place(checkpoint)
        refuse_place(trace, file)
        progress(f"starting {plan.workers} workers")
        job = _launched(plan, backend, weights, init_seed, memory)
    with clean_stdout(as_json), job:
        losses, seconds = _steps(job, islice(batches, steps), lr, said=not as_json)
        if checkpoint is not None:
            job.save_checkpoint(checkpoint)
        if trace is not None:
            _write_trace(job, trace)
    _report(file, losses, seconds, simulate(plan, profile=used.profile).seconds, checkpoint, as_json=as_json)
    if not as_json:
        print(used.text(plan))


def _trains(plan: Plan) -> None:
    if "train" not in plan.entries:
        raise UsageError(
            f"the plan does not train: its entries are {', '.join(plan.entries)}", hint="superscaler generate DIR"
        )


def _say_what_is_called(plan: Plan, data: str) -> None:
    """A plan is data, but a user's model is made by code of this machine: whoever runs the plan is to know whose."""
    from superscaler.cli.subject import Request

    if "source" in plan.model and (data == "example" or _has_buffers(plan)):
        name = Request.of(plan.model["source"]).name
        if ":" in name and not name.startswith("hf:"):
            print(f"calling {name}, which the plan names", file=sys.stderr)


def _launched(
    plan: Plan, backend: Literal["ray", "inline"], weights: Path | None, init_seed: int | None, memory: float | None
) -> Job:
    from superscaler.api import launch

    model = _model(plan, init_seed or 0) if _has_buffers(plan) else None
    seed = None if weights is not None or model is not None else init_seed or 0
    limit = None if memory is None else bytes_of(memory, "--memory")
    return launch(plan, model, backend=backend, memory=limit, init_seed=seed, weights=weights)


def _steps(job: Job, batches: Iterable[Batch], lr: float | None, *, said: bool) -> tuple[list[float], list[float]]:
    losses: list[float] = []
    seconds: list[float] = []
    for step, batch in enumerate(batches, 1):
        began = perf_counter()
        loss = job.step(**batch, lr=lr) if isinstance(batch, Mapping) else job.step(*batch, lr=lr)
        seconds.append(perf_counter() - began)
        losses.append(loss)
        if said:
            print(f"step {step:5d}  loss {loss:.6f}  {seconds[-1]:.3f} s", flush=True)
    return losses, seconds


def _write_trace(job: Job, path: Path) -> None:
    from superscaler.scheduler.measured import trace_of, write_trace

    with writing(path):
        write_trace(trace_of("train", job.plan.workers, job.trace()), path)


def _report(
    file: Path, losses: list[float], seconds: list[float], predicted: float, checkpoint: Path | None, *, as_json: bool
) -> None:
    typical = statistics.median(seconds) if seconds else 0.0
    if not as_json:
        wrote = f"; wrote {checkpoint}" if checkpoint else ""
        print(f"median step {typical:.4g} s, predicted {predicted:.4g} s{wrote}")
        return
    figures = {"steps": len(losses), "losses": losses, "seconds": seconds}
    figures |= {"median_seconds": typical, "predicted_seconds": predicted}
    print_json({"file": str(file), **figures, "checkpoint": str(checkpoint) if checkpoint is not None else None})


def _has_buffers(plan: Plan) -> bool:
    return any(tensor.kind == "buffer" and isinstance(tensor.init, str) for tensor in plan.state)


def _model(plan: Plan, seed: int) -> Any:
    """The plan's model, freshly made, because it has buffers whose content no seed can tell."""
    from superscaler.cli.subject import Request, make

    if "source" not in plan.model:
        raise UsageError("the plan's model has buffers, and the plan does not say how to make it", hint="--weights DIR")
    return make(Request.of(plan.model["source"]), seed=seed).model
