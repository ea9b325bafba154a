"""Inputs of a run: checked against the plan, and cut into what each worker needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import InputError, UsageError, did_you_mean
from superscaler.ir.plan import Entry, Plan
from superscaler.ir.region import Region
from superscaler.runtime.binding import Binding, program_of
from superscaler.runtime.ops import DTYPES
from superscaler.runtime.packing import Packing, packing

DRIVEN = ("lr", "step")  # what the job itself gives an entry


def input_names(entry: Entry) -> list[str]:
    """The names of the inputs that the user gives, in order."""
    return [name for name in entry.graph.inputs if name not in DRIVEN]


def gather(entry: Entry, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs by name: positional ones in order, nested ones as ``name.key``; None is none.

    Raises :class:`InputError` naming the input whose count, shape or dtype is not the plan's.
    """
    names = input_names(entry)
    given: dict[str, Any] = {}
    flat = [leaf for arg in args for leaf in _leaves(arg) if leaf is not None]
    if len(flat) > len(names):
        _refuse_settings(flat)
    if len(flat) > len(names):
        raise InputError(
            f"{len(flat)} inputs were given, the plan has {len(names)}", f"they are: {', '.join(names)}", hint="as many"
        )
    given.update(zip(names, flat, strict=False))
    for name, value in _flatten(named):
        if value is None and name not in names:
            continue
        if name not in names:
            _refuse_settings([value])
            raise InputError(f"the plan has no input {name!r}", hint=did_you_mean(name, names))
        if name in given:
            raise InputError(f"input {name!r} was given twice", hint=f"by its place, or as {name}=…")
        given[name] = value
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"input {missing[0]!r} was not given", f"the plan's inputs are: {', '.join(names)}",
                         hint=f"{missing[0]}=a tensor of shape {entry.graph.tensor[missing[0]].shape}")  # fmt: skip
    return {name: _checked(entry, name, given[name]) for name in names}


def _refuse_settings(values: Sequence[Any]) -> None:
    """What is no tensor was part of the model when it was traced."""
    for value in values:
        if isinstance(value, bool | int | float | str):
            raise InputError(
                f"{value!r} is no tensor: settings were fixed when the plan was compiled",
                hint="leave it out here; for another value compile another plan, or make it a tensor",
            )


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    if isinstance(value, list | tuple):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]


def _flatten(named: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in named.items():
        if isinstance(value, Mapping):
            found += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            found += _flatten({str(i): v for i, v in enumerate(value)}, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _checked(entry: Entry, name: str, value: Any) -> Tensor:
    tensor = entry.graph.tensor[name]
    if not isinstance(value, Tensor):
        raise InputError(f"input {name!r} is a {type(value).__name__}, not a tensor", hint="torch.as_tensor(...)")
    if tuple(value.shape) != tensor.shape:
        raise InputError(
            f"input {name!r} has shape {tuple(value.shape)}, the plan was compiled for {tensor.shape}",
            hint="compile a plan for this batch",
        )
    if value.dtype != DTYPES[tensor.dtype]:
        got = str(value.dtype).removeprefix("torch.")
        raise InputError(
            f"input {name!r} has dtype {got}, the plan was compiled for {tensor.dtype}",
            hint=f"{name}.to(torch.{tensor.dtype})",
        )
    return value.detach()


class Cutter:
    """Which part of each input each worker takes, in one entry; equal parts of different workers are one object."""

    def __init__(self, plan: Plan, entry: Entry) -> None:
        self.entry = entry
        self.wanted: list[dict[str, Region]] = []
        self.packings: dict[tuple[str, Region], Packing] = {}
        for worker in range(plan.workers):
            program = program_of(entry, worker)
            regions: dict[str, Region] = {}
            if program is not None:
                binding = Binding(plan, entry, program, worker)
                regions = {name: binding.local(value, {}) for name, value in program.inputs.items()}
            self.wanted.append(regions)
            for name, region in regions.items():
                full = Region.full(entry.graph.tensor[name].shape)
                self.packings.setdefault((name, region), packing(full, region))

    def cut(self, inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Per worker: its parts, contiguous."""
        parts = {key: pack.take(inputs[key[0]]).contiguous() for key, pack in self.packings.items()}
        return [{name: parts[name, region] for name, region in wanted.items()} for wanted in self.wanted]


def driven(entry: Entry, *, lr: float | None, step: int) -> dict[str, Tensor]:
    """The inputs that the job gives: the learning rate, and the number of this step (from 1)."""
    found: dict[str, Tensor] = {}
    for name, value in (("lr", lr), ("step", step)):
        if name in entry.graph.inputs:
            if value is None:
                raise UsageError("the plan states no learning rate", hint="step(..., lr=...)")
            found[name] = torch.tensor(float(value), dtype=DTYPES[entry.graph.tensor[name].dtype])
    return found
