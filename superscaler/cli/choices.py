"""Options of ``compile-plan`` as the objects they mean: cluster, plan, optimizer."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from superscaler.cli.lookup import call, find_object
from superscaler.errors import ClusterError, PlanError, UsageError, did_you_mean
from superscaler.ir.cluster import DEVICES, Cluster, bytes_of
from superscaler.plans import PLANS, Planner, PlanScript, devices_of, parse
from superscaler.plans.auto import Auto
from superscaler.transforms.optimize import SGD, AdamW, Optimizer


def cluster_of(text: str, devices: int | None, memory: float | None, plan: str) -> Cluster:
    """``local``, a preset or a TOML file, of ``devices`` devices of ``memory`` GiB each.

    Without ``devices``: as many as the plan names; where it names none, this machine's processors, or one node.
    """
    if devices is not None and devices < 1:
        raise UsageError(f"--devices is {devices}", hint="1 or more")
    if memory is not None and not 0 < memory < inf:
        raise UsageError(f"--memory is {memory:g} GiB", hint="more than 0")
    if text.endswith(".toml"):
        return _from_file(text, devices, memory)
    if text == "local":
        return Cluster.local(devices or _named(plan) or os.cpu_count() or 1, memory=memory)
    if text not in DEVICES:
        known = [*DEVICES, "local"]
        raise UsageError(f"unknown cluster {text!r}", hint=f"{did_you_mean(text, known)}; or a FILE.toml")
    return Cluster.preset(text, devices=devices or _named(plan) or 8, memory=memory)


def _from_file(text: str, devices: int | None, memory: float | None) -> Cluster:
    cluster = Cluster.load(text)
    if devices is not None and devices > cluster.size:
        raise ClusterError(f"--devices {devices}, and {text} has {cluster.size}", hint=f"--devices {cluster.size}")
    if devices is not None:
        cluster = msgspec.structs.replace(cluster, devices=cluster.devices[:devices])
    if memory is not None:
        kinds = tuple(msgspec.structs.replace(kind, memory=bytes_of(memory, "--memory")) for kind in cluster.kinds)
        cluster = msgspec.structs.replace(cluster, kinds=kinds)
    return cluster


def _named(plan: str) -> int:
    """The devices that a named plan is for; 0 for auto and scripts."""
    return 0 if plan == "auto" or ".py:" in plan else devices_of(plan)


def script_of(text: str, microbatches: int | None, progress: Callable[[str], None]) -> PlanScript:
    """``auto``, a plan's name with options, or ``script.py:function``.

    Raises :class:`UsageError` for an unknown name or option, and for options that disagree.
    """
    if microbatches is not None and microbatches < 1:
        raise UsageError(f"--microbatches is {microbatches}", hint="1 or more")
    if text == "auto":
        return Auto(microbatches=microbatches, progress=progress)
    if ".py:" in text:
        return _from_script(text, microbatches)
    name = ""
    for part in text.split("+"):
        name = part.partition(":")[0]
        if name not in PLANS:
            hint = did_you_mean(name, [*PLANS, "auto"])
            raise UsageError(f"unknown plan {name!r}", hint=f"{hint}; or script.py:function")
    if microbatches is not None and "microbatches" not in inspect.signature(PLANS[name]).parameters:
        raise UsageError(f"plan {name!r} has no micro-batches", hint="leave --microbatches out")
    return parse(text, microbatches=microbatches)


def _from_script(text: str, microbatches: int | None) -> PlanScript:
    if microbatches is not None:
        raise UsageError(
            "--microbatches with a script: which of them counts?", hint="p.microbatches(...) in the script"
        )
    function = find_object(text)
    if not callable(function):
        raise UsageError(f"{text} is a {type(function).__name__}, not a function", hint="def my_plan(p): ...")

    def script(p: Planner) -> Any:
        return call(f"plan {text}", function, p)

    return script


def stated(script: PlanScript, text: str, microbatches: int | None) -> str:
    """The plan in full, as ``--plan`` would take it: what auto chose, with what other options said."""
    if isinstance(script, Auto) and script.chosen is not None:
        return script.chosen.name
    if microbatches is None or "microbatches=" in text:
        return text
    return f"{text}{',' if ':' in text.rpartition('+')[2] else ':'}microbatches={microbatches}"


def uses_all(plan: str, asked: int | None) -> None:
    """Raises :class:`PlanError` if a named plan is for another number of devices than was asked for."""
    named = _named(plan)
    if asked is not None and named and named != asked:
        raise PlanError(
            f"plan {plan} is for {named} devices, and --devices is {asked}",
            hint=f"degrees whose product is {asked}, or --devices {named}",
        )


def optimizer_of(name: str, lr: float | None, clip_norm: float | None) -> Optimizer | None:
    """``adamw``, ``sgd`` or ``none`` with what was said about it."""
    kinds: dict[str, Callable[..., Any]] = {"adamw": AdamW, "sgd": SGD}
    if lr is not None and not 0 <= lr < inf:
        raise UsageError(f"--lr is {lr:g}", hint="0 or more")
    if clip_norm is not None and not clip_norm > 0:
        raise UsageError(f"--clip-norm is {clip_norm:g}", hint="more than 0")
    if name == "none":
        if lr is not None or clip_norm is not None:
            raise UsageError("--lr and --clip-norm belong to an optimizer", hint="--optimizer adamw or sgd")
        return None
    if name not in kinds:
        raise UsageError(f"unknown optimizer {name!r}", hint=did_you_mean(name, [*kinds, "none"]))
    said = {"lr": lr, "clip_norm": clip_norm}
    return kinds[name](**{key: value for key, value in said.items() if value is not None})


def default_file(model: str) -> Path:
    """Where the plan of a model is written if nothing is said."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", model.removeprefix("hf:").rstrip("/").rpartition("/")[2]).strip("-")
    return Path(f"{stem or 'model'}.plan.json")
