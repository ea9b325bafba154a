"""Inputs of a run: checked against the plan, and cut into what each worker needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from superscaler.errors import InputError, PlanFileError, UsageError, did_you_mean
from superscaler.ir.graph import DRIVEN, GIVEN, OF_STEP
from superscaler.ir.plan import Entry, Plan
from superscaler.ir.region import Region
from superscaler.runtime.binding import Binding, program_of
from superscaler.runtime.ops import DTYPES
from superscaler.runtime.packing import Packing, packing


def input_names(entry: Entry) -> list[str]:
    """The names of the inputs that the user gives, in order."""
    return [name for name in entry.graph.inputs if name.removeprefix(DRIVEN) not in OF_STEP]


def call_of(plan: Plan) -> dict[str, str]:
    """The arguments of the call that a plan was compiled for: see :attr:`superscaler.trace.Traced.call`."""
    try:
        return msgspec.convert(plan.settings.get("call", {}), dict[str, str])
    except msgspec.ValidationError as e:
        raise PlanFileError("the plan's settings state no call", str(e), hint="compile the plan again") from None


def gather(
    entry: Entry, args: Sequence[Any], named: Mapping[str, Any], call: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """The inputs by name: positional ones in order, nested ones as ``name.key``; None is none.

    Settings may be left out; those given must be those of ``call``: see :func:`call_of`. Raises :class:`InputError`
    naming the input whose count, shape or dtype is not the plan's, or the setting with both of its values.
    """
    names = input_names(entry)
    call = call or dict.fromkeys(names, "")
    given: dict[str, Any] = {}
    flat = _without_settings(_in_order(args, call), call)
    if len(flat) > len(names):
        raise InputError(
            f"{len(flat)} inputs were given, the plan has {len(names)}", f"they are: {', '.join(names)}", hint="as many"
        )
    given.update(zip(names, flat, strict=False))
    for user, value in _flatten(named):
        name = user if GIVEN + user not in names else GIVEN + user
        if name not in names and (name in call or value is None or _is_setting(value)):
            _agree(name, value, call)
            continue
        if name not in names:
            raise InputError(f"the plan has no input {name!r}", hint=did_you_mean(name, names))
        if name in given:
            raise InputError(f"input {name!r} was given twice", hint=f"by its place, or as {name}=…")
        given[name] = value
    missing = [name for name in names if name not in given]
    if missing:
        shape = entry.graph.tensor[missing[0]].shape
        raise InputError(f"input {missing[0]!r} was not given", f"the plan's inputs are: {', '.join(names)}",
                         hint=f"{missing[0].removeprefix(GIVEN)}=a tensor of shape {shape}")  # fmt: skip
    return {name: _checked(entry, name, given[name]) for name in names}


def _is_setting(value: Any) -> bool:
    """Whether a value that is no tensor was part of the model when it was traced."""
    return isinstance(value, bool | int | float | str | torch.dtype | torch.device)


def _without_settings(flat: Sequence[Any], call: Mapping[str, str]) -> list[Any]:
    """What stands at the places of tensors; each setting must be that of its place in the call."""
    kept: list[Any] = []
    places = list(call)
    for value in flat:
        setting = value is None or _is_setting(value)
        while places and call[places[0]] and not setting:  # left out
            places.pop(0)
        if places and (value is not None or call[places[0]]):
            place = places.pop(0)
            if not call[place]:
                kept.append(value)
            else:
                _agree(place, value, call)
        elif setting:
            _agree("a setting", value, call)
        else:
            kept.append(value)
    return kept


def _agree(name: str, value: Any, call: Mapping[str, str]) -> None:
    """Raise :class:`InputError` for another setting than the call's; None may stand for what it has not."""
    if name not in call and value is not None:
        raise InputError(
            f"{name} is {value!r}, which is no tensor: settings were fixed when the plan was compiled",
            hint="leave it out here; for another value compile another plan, or make it a tensor",
        )
    written = repr(value) if value is None or _is_setting(value) else f"a {type(value).__name__}"
    if name in call and written != call[name]:
        raise InputError(
            f"{name} is {written}, the plan was compiled for {name}={call[name]}",
            "settings were fixed when the plan was compiled",
            hint=f"{name}={call[name]}, or leave it out; for another value compile another plan, or make it a tensor",
        )


def _in_order(args: Sequence[Any], call: Mapping[str, str]) -> list[Any]:
    """The leaves of positional arguments; those of a mapping in the order of the call's names, whatever its own."""
    leaves: list[Any] = []
    prefixes = ["", *dict.fromkeys(name.partition(".")[0] + "." for name in call)]
    for arg in args:
        if not isinstance(arg, Mapping | list | tuple):
            leaves.append(arg)
            continue
        keyed: Mapping[str, Any] = arg if isinstance(arg, Mapping) else {str(i): v for i, v in enumerate(arg)}
        each = {prefix: dict(_flatten(keyed, prefix)) for prefix in prefixes}
        fitting = (p for p, named in each.items() if all(n in call for n, v in named.items() if v is not None))
        prefix = next(fitting, None)
        if prefix is None and isinstance(arg, Mapping):
            raise InputError(f"the plan has no input of {', '.join(map(str, arg))}", f"it has {', '.join(call)}",
                             hint="the names that the plan was compiled for")  # fmt: skip
        if prefix is None:
            leaves += _leaves(arg)
            continue
        leaves += [each[prefix][name] for name in call if name in each[prefix]]
        prefixes = [p for p in prefixes if p != prefix or not p]
    return leaves


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
    for known, value in zip(OF_STEP, (lr, step), strict=True):
        for name in {known, DRIVEN + known}.intersection(entry.graph.inputs):
            if value is None:
                raise UsageError("the plan states no learning rate", hint="step(..., lr=...)")
            found[name] = torch.tensor(float(value), dtype=DTYPES[entry.graph.tensor[name].dtype])
    return found
