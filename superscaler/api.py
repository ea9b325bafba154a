"""What users call: ``plan`` (decorator), ``compile``, ``check``, ``simulate``, ``launch``, ``schedule``.

torch is imported only where a model is at hand; ray only by ``launch``.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from superscaler.errors import PlanError, ProfileError, SplitError, UsageError
from superscaler.garbage import uncollected
from superscaler.ir.argument import path_of, shown, whole
from superscaler.ir.check import check
from superscaler.ir.cluster import Cluster
from superscaler.ir.entry import MASTER, refuse_no_plan
from superscaler.ir.graph import Graph, Tensor
from superscaler.ir.layout import Axis, Mesh, Space
from superscaler.ir.plan import Entry, Plan, StateTensor
from superscaler.ir.task import TaskGraph
from superscaler.plans import Planner, PlanScript, parse, single
from superscaler.plans.fit import Making, infeasible, over
from superscaler.scheduler.machine import this_machine
from superscaler.scheduler.playground import schedule
from superscaler.scheduler.profile import Profile, load_profile, profile_path, refuse_file, save_profile
from superscaler.scheduler.simulate import simulate
from superscaler.scheduler.solve import check_search
from superscaler.transforms.assemble import with_state
from superscaler.transforms.optimize import SGD, AdamW, Optimizer, with_optimizer

if TYPE_CHECKING:
    from torch import nn

    from superscaler.ir.explain import Explanation
    from superscaler.ir.rules.coverage import Coverage
    from superscaler.runtime.job import Job
    from superscaler.runtime.launch import Backend, Weights

Model = TypeVar("Model")
Progress = Callable[[str], None]


def plan(script: PlanScript | str) -> Callable[[Model], Model]:
    """Decorate a module class with the plan that ``compile`` uses for it: a plan, a script, or ``"NAME:key=value"``.

    Raises :class:`UsageError` for what is no plan, and for what is no class.
    """
    _refuse_no_plan(script)

    def decorate(model: Model) -> Model:
        if not isinstance(model, type):
            raise UsageError(f"@superscaler.plan decorates a module class, not {shown(model)}",
                             hint="compile(model, ..., plan=...) for one module of a class")  # fmt: skip
        model.__superscaler_plan__ = script  # type: ignore[attr-defined]
        return model

    return decorate


# What compiling makes lives on, and a look at it takes a third of the time.
@uncollected()
def compile(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    cluster: Cluster,
    plan: PlanScript | str | None = None,
    loss: Callable[[Any], Any] | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    dtype: Literal["f32", "f64", "bf16"] = "f32",
    batch_norm: Literal["global", "worker"] | int = "global",
    evaluate: bool = True,
    time_limit: float | None = None,
    profile: Profile | None = None,
    progress: Progress = lambda message: None,
) -> Plan:
    """Compile ``model`` on example inputs (the global batch) into a checked plan for ``cluster``.

    ``plan`` overrides the decorator's. ``loss`` maps the model's output to the scalar loss (default: the output, or its
    ``.loss``). ``optimizer``: its steps become part of the plan; without one, gradients are computed only.
    ``batch_norm``: over what its statistics are taken: the "global" batch; what a "worker" has of it at a time; or each
    of so many equal parts of it. ``profile``: costs as measured here (see :func:`profile`). The model is not changed.
    Raises :class:`TraceError`, :class:`PlanError`, :class:`InfeasiblePlan`.
    """
    from superscaler.trace import Traced, trace
    from superscaler.trace.normalization import batch_norm_parts
    from superscaler.transforms.discover import discover_missing, verify_custom

    started = time.monotonic()
    _refuse_other(cluster, Cluster, "cluster", "superscaler.Cluster.local(4)")
    if optimizer is not None:
        _refuse_other(optimizer, SGD | AdamW, "optimizer", "superscaler.AdamW(lr=1e-3)")
    if profile is not None:
        _refuse_other(profile, Profile, "profile", "superscaler.known_profile(workers)")
    for name, function in (("loss", loss), ("progress", progress)):
        if not (callable(function) or (name == "loss" and loss is None)):
            raise UsageError(f"{name}={shown(function)} cannot be called", hint=f"{name}=a function of one argument")
    if batch_norm not in ("global", "worker") and whole(batch_norm, "batch_norm") < 1:
        raise UsageError(f"batch_norm={batch_norm} is no number of parts", hint='"global", "worker", 2, 3, …')
    script = _script(plan if plan is not None else getattr(type(model), "__superscaler_plan__", None))

    def train(parts: int) -> Traced:
        with batch_norm_parts(parts):
            return trace(model, args, kwargs, loss=loss, mode="train", dtype=dtype)

    progress("tracing")
    traced = train(batch_norm if isinstance(batch_norm, int) else 1)
    parts = _batch_parts(traced.graph, cluster, script) if batch_norm == "worker" else 1
    traced = train(parts) if parts > 1 else traced
    graphs = {"train": with_optimizer(traced.graph, optimizer)}
    if evaluate:
        progress("tracing for evaluation")
        graphs["eval"] = trace(model, args, kwargs, loss=loss, mode="eval", dtype=dtype).graph
    progress("finding rules")
    assumptions = dict.fromkeys(target for graph in graphs.values() for target in discover_missing(graph))
    for graph in graphs.values():
        verify_custom(graph)
    settings = {
        "seed": seed,
        "dtype": dtype,
        "lr": optimizer.lr if optimizer is not None else 0.0,
        "optimizer": msgspec.json.decode(msgspec.json.encode(optimizer)),
        "call": dict(traced.call),
    }
    return compile_graphs(
        graphs,
        cluster,
        script,
        model={
            "name": type(model).__name__,
            "aliases": {other: names[0] for names in traced.state.values() for other in names[1:]},
        },
        settings=settings,
        assumptions=tuple(assumptions),
        seed=seed,
        time_limit=time_limit,
        profile=profile,
        progress=progress,
        started=started,
    )


def _batch_parts(graph: Graph, cluster: Cluster, script: PlanScript) -> int:
    """In how many parts a plan takes the batch: on how many workers, in how many micro-batches."""
    planner = Planner(graph, cluster)
    script(planner)
    said = planner.directives()
    return said.microbatches * prod(said.axes[axis].ways for axis in {axis for axis, _, _ in said.homes})


def compile_graphs(
    graphs: Mapping[str, Graph],
    cluster: Cluster,
    script: PlanScript,
    *,
    model: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    assumptions: tuple[str, ...] = (),
    seed: int = 0,
    time_limit: float | None = None,
    profile: Profile | None = None,
    progress: Progress = lambda message: None,
    started: float | None = None,
) -> Plan:
    """Compile already traced graphs (entry name -> Graph) with one plan script into a checked plan."""
    check_search(time_limit, seed)
    entries: dict[str, Entry] = {}
    placed: dict[str, TaskGraph] = {}
    making: dict[str, Making] = {}
    for name, graph in graphs.items():
        progress(f"splitting and placing {name}")
        making[name] = Making(graph, cluster, script, name == "train", seed, time_limit, profile)
        placed[name] = _on_same_homes(making[name].tasks(), next(iter(placed.values()), None))
        progress(f"scheduling {name}")
        entries[name] = making[name].entry(placed[name])
    space = _union(tasks.space for tasks in placed.values())
    state = _state(placed)
    entries = {name: with_state(entry, state, space) for name, entry in entries.items()}
    workers = 1 + max(d for m in space.meshes for d in m.devices)
    plan = Plan(entries, space, state, cluster, workers, model or {}, settings or {"seed": seed}, assumptions)
    for name, entry in entries.items():
        if over(entry.programs, cluster):
            progress(f"{name} does not fit: looking for the smallest change")
            raise infeasible(making[name], name, entry)
    progress("checking")
    check(plan)
    if started is not None:
        plan.settings["compile_seconds"] = round(time.monotonic() - started, 3)
    return plan


def _script(given: PlanScript | str | None) -> PlanScript:
    if given is None:
        return single()
    if isinstance(given, str):
        return parse(given)
    _refuse_no_plan(given)
    return given


def _refuse_other(given: object, kind: Any, name: str, hint: str) -> None:
    if not isinstance(given, kind):
        raise UsageError(f"{name}={shown(given)} is no {name}", hint=f"{name}={hint}")


def _refuse_no_plan(given: object) -> None:
    """A plan is called with a Planner; a class would make an object of it, a generator or coroutine run nothing."""
    hint = '"NAME:key=value", ss.plans.NAME(...), or a function of p'
    if isinstance(given, type):
        raise UsageError(
            f"the class {given.__name__} is no plan", hint=f"@superscaler.plan(PLAN) above a class: {hint}"
        )
    if not isinstance(given, str) and not callable(given):
        raise UsageError(f"{shown(given)} is no plan", hint=hint)
    if inspect.isgeneratorfunction(given) or inspect.iscoroutinefunction(given):
        raise UsageError(f"the plan {given.__name__} runs nothing when it is called", hint="no yield, no async def")


def _on_same_homes(tasks: TaskGraph, first: TaskGraph | None) -> TaskGraph:
    """State lies where the first entry (training) keeps it, whatever the entry."""
    if first is None:
        return tasks
    homes = {n: first.homes[n] if n in first.homes and _is_state(tasks, n) else h for n, h in tasks.homes.items()}
    return msgspec.structs.replace(tasks, homes=homes)


def _is_state(tasks: TaskGraph, name: str) -> bool:
    return tasks.graph.tensor[name].kind != "input"


_ALIKE = "a plan that says the same of training and evaluation, or evaluate=False"


def _union(spaces: Any) -> Space:
    """One space for all entries: the same script makes the same axes and meshes."""
    axes: dict[str, Axis] = {}
    meshes: dict[str, Mesh] = {}
    for space in spaces:
        for axis in space.axes:
            if axes.setdefault(axis.name, axis) != axis:
                raise PlanError(
                    f"axis {axis.name!r} differs between the entries of the plan",
                    f"it has {axes[axis.name].ways} ways in one and {axis.ways} in another",
                    hint=_ALIKE,
                )
        for mesh in space.meshes:
            if meshes.setdefault(mesh.name, mesh) != mesh:
                raise PlanError(f"mesh {mesh.name!r} differs between the entries of the plan", hint=_ALIKE)
    return Space(tuple(axes.values()), tuple(meshes.values()))


def _state(placed: Mapping[str, TaskGraph]) -> tuple[StateTensor, ...]:
    found: dict[str, StateTensor] = {}
    for tasks in placed.values():
        for tensor in tasks.graph.state():
            home = tasks.homes[tensor.name]
            found.setdefault(
                tensor.name,
                StateTensor(
                    tensor.name, tensor.shape, tensor.dtype, tensor.kind, home, _initial(tensor),
                    "host" if tensor.name in tasks.hosted else "device",
                ),
            )  # fmt: skip
    return tuple(found.values())


def _initial(tensor: Tensor) -> str | float:
    """How a state tensor starts: as the model's, or at zero."""
    if tensor.name.endswith(MASTER) and tensor.kind == "optimizer":
        return f"parameter:{tensor.name.removesuffix(MASTER)}"
    return 0.0 if tensor.kind in ("optimizer", "cache") else tensor.kind


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
    """Start a plan's workers: see :func:`superscaler.runtime.launch.launch`. Use the job as a context manager."""
    from superscaler.runtime.launch import launch as start

    return start(
        plan,
        model,
        backend=backend,
        memory=memory,
        compile=compile,
        timeout=timeout,
        init_seed=init_seed,
        weights=weights,
        nan=nan,
    )


def coverage(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Callable[[Any], Any] | None = None,
) -> Coverage:
    """How many op instances of a training step of ``model`` have a split rule; missing ones are looked for first."""
    from superscaler.ir.rules.coverage import coverage as covered
    from superscaler.trace import trace
    from superscaler.transforms.discover import discover_missing

    graph = trace(model, args, kwargs, loss=loss).graph
    with contextlib.suppress(SplitError):  # an op that discovery cannot find a rule for counts as missing
        discover_missing(graph)
    return covered(graph)


def profile(
    plan: Plan, *, path: str | Path | None = None, repeats: int = 20, links: bool = True,
    progress: Progress = lambda message: None,
) -> Profile:  # fmt: skip
    """Measure here what ``plan`` needs to be timed: its ops and task bodies, this machine's device and ``links``.

    Kept on disk (``path``, or by machine in the user's cache) with what was measured before. ``compile`` and
    ``simulate`` take it. Raises :class:`PlanError` if a worker of the plan does not fit into this machine,
    :class:`ProfileError` if the profile cannot be written.
    """
    from superscaler.runtime.profile import measure

    refuse_no_plan(plan)
    if whole(repeats, "repeats") < 1:
        raise UsageError(f"repeats is {repeats}", hint="20, say")
    file = None if path is None else path_of(path, 'profile(plan, path="profile.json")')
    if file is not None:
        refuse_file(file, this_machine(plan.workers))  # now: not after all was measured
    found = measure(plan, repeats=repeats, links=links, progress=progress)
    try:
        written = save_profile(found, file)
    except OSError as e:
        why = e.strerror or str(e)
        raise ProfileError("the profile cannot be written", why, hint="path=a file where there is space") from e
    return load_profile(written, found.machine)


def known_profile(
    workers: int, path: str | Path | None = None, *, foreign: Literal["refuse", "warn"] = "refuse"
) -> Profile:
    """What was measured before, for so many workers on this machine.

    Raises :class:`ProfileError` if nothing was; for a profile of another machine, naming both, unless it is to be used
    with a warning.
    """
    here = this_machine(workers)
    return load_profile(path if path is not None else profile_path(here), here, foreign=foreign)


def explain(plan: Plan, subject: str | int | None = None) -> Explanation:
    """Where a parameter lives, where an op, a module or a worker's share runs, who exchanges what with whom, and why.

    ``subject``: a name in the plan, or a worker's number; None: what can be asked. Raises :class:`UsageError` for an
    unknown one.
    """
    from superscaler.ir.explain import explain as explained

    return explained(plan, None if subject is None else str(subject))


__all__ = [
    "check", "compile", "compile_graphs", "coverage", "explain", "known_profile", "launch", "plan", "profile",
    "schedule", "simulate",
]  # fmt: skip
