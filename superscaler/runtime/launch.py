"""Launching: a verified plan becomes a job on workers, in this process or on Ray actors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from superscaler.errors import ClusterError, UsageError, did_you_mean
from superscaler.ir.argument import path_of, shown, whole
from superscaler.ir.plan import Plan
from superscaler.runtime import restore
from superscaler.runtime.arena import check_budget
from superscaler.runtime.crew import Crew, InlineCrew
from superscaler.runtime.initial import check_model, check_weights, copied, draw_state, send_state, tensors_of
from superscaler.runtime.job import Job
from superscaler.runtime.worker import WorkerOptions

Backend = Literal["ray", "inline"]
Weights = str | Path | Mapping[str, Tensor]


def launch(
    plan: Plan,
    model: nn.Module | None = None,
    *,
    backend: Backend = "ray",
    memory: int | None = None,
    compile: bool = False,
    timeout: float = 300.0,
    init_seed: int | None = None,
    weights: Weights | None = None,
    nan: Literal["ignore", "raise"] = "ignore",
) -> Job:
    """Start the workers of a plan and give them their state; a context manager that leaves nothing behind.

    ``model``: its parameters and buffers are copied, it is never touched. ``weights``: a checkpoint or Hugging Face
    directory, or tensors by name, instead or on top. ``init_seed``: without either, where random weights start.
    ``backend``: "ray" (an actor per worker) or "inline" (all workers in this process). ``memory``: bytes that
    each worker may use: state, arena, inputs and the workspace of its largest task. ``compile``: run bodies through
    ``torch.compile``. ``timeout``: seconds that one communication may take. ``nan``: "raise" stops at the first
    step whose loss is NaN or infinite, with :class:`NonFiniteLoss`.

    Raises :class:`InfeasiblePlan` naming the smallest ``memory`` that will do if it is less, before anything runs;
    :class:`PlanError` if the model is not the plan's, :class:`CheckpointError` if the weights are not,
    :class:`ClusterError` if there is less of a machine than the plan needs.
    """
    if backend not in ("ray", "inline"):
        raise UsageError(f"unknown backend {backend!r}", hint=did_you_mean(str(backend), ("ray", "inline")))
    if nan not in ("ignore", "raise"):
        raise UsageError(f"unknown nan={nan!r}", hint=did_you_mean(str(nan), ("ignore", "raise")))
    _refuse(plan, model, {"memory": memory, "init_seed": init_seed}, timeout)
    given = _given(weights)
    sources = _sources(plan, model, given)
    needs = [t.name for t in copied(plan) if t.name not in sources]
    if needs and init_seed is None and not isinstance(given, Path):
        raise UsageError(f"{needs[0]!r} has no initial content", hint="give the model, weights= or init_seed=")
    options = WorkerOptions("cuda:0" if torch.cuda.is_available() else "cpu", compile, memory, timeout)
    if memory is not None:
        check_budget(plan, memory, torch.device(options.device))
    crew = _crew(plan, backend, options)
    try:
        if needs and init_seed is not None:
            draw_state(plan, crew, init_seed)
        send_state(plan, crew, sources)
        if isinstance(given, Path):
            restore.load_weights(plan, crew, given, known=frozenset(sources))
        return Job(plan, crew, model=model, finite=nan == "raise")
    except BaseException:
        crew.close()
        raise


def _refuse(plan: object, model: object, numbers: Mapping[str, object], timeout: object) -> None:
    """Raise :class:`UsageError` for arguments of another type, before anything is started."""
    if not isinstance(plan, Plan):
        raise UsageError(f"{shown(plan)} is no plan to launch", hint="superscaler.compile(...), or Plan.load(FILE)")
    if model is not None and not isinstance(model, nn.Module):
        raise UsageError(f"{shown(model)} is no module", hint="an instance: Net(), not Net")
    for name, number in numbers.items():
        if number is not None:
            whole(number, name)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise UsageError(f"timeout is {shown(timeout)}", hint="more than 0 seconds")


def _given(weights: Weights | None) -> Path | Mapping[str, Tensor] | None:
    if weights is None or isinstance(weights, Mapping):
        return weights
    return path_of(weights, "the directory of a checkpoint, or tensors by name")


def _sources(plan: Plan, model: nn.Module | None, weights: Path | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    sources = {} if model is None else check_model(plan, model)
    if isinstance(weights, Mapping):
        beside = frozenset() if model is None else frozenset(tensors_of(model))
        sources.update(check_weights(plan, weights, beside=beside))
    return sources


def _crew(plan: Plan, backend: Backend, options: WorkerOptions) -> Crew:
    if backend == "inline":
        return InlineCrew(plan, options)
    try:
        from superscaler.runtime.launch_ray import RayCrew
    except ModuleNotFoundError as e:
        raise ClusterError(
            f"backend='ray' needs {e.name}, which is not installed", hint="install it, or backend='inline'"
        ) from e
    return RayCrew(plan, options)
