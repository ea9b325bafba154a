"""From an op's arguments, as data, to a call: placeholders replaced by what they stand for in one part."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from superscaler.ir.graph import ITEMSIZE, Op
from superscaler.ir.region import Region
from superscaler.ir.rules.build import input_of
from superscaler.ir.rules.part import Part
from superscaler.ir.rules.rule import Rule
from superscaler.runtime.ops.table import function

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEMSIZE}


class _Source(str):
    """Python source that stands for a value in a rendered call."""

    __slots__ = ()


def _placeholder(text: str, part: Part) -> Any:
    name, _, dim = text[1:].partition(":")
    if name == "start":
        return None if part.whole(dim) else part.start[dim]
    if name in ("local", "size"):
        return getattr(part, name)[dim]
    if name in ("shape", "region", "seed", "key") and not dim:
        return getattr(part, name)
    raise ValueError(f"unknown placeholder {text!r}")


def _value(arg: Any, inputs: Sequence[Any], part: Part) -> Any:
    if isinstance(arg, str):
        number = input_of(arg)
        if number is not None:
            return inputs[number]
        return _placeholder(arg, part) if arg[:1] == "#" else DTYPES.get(arg, arg)
    if isinstance(arg, list | tuple):
        return [_value(item, inputs, part) for item in arg]
    return arg


def bind(op_args: Sequence[Any], inputs: Sequence[Any], part: Part) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of one part's call: ``"$k"`` and ``"#…"`` replaced, dtype names made dtypes.

    ``"#start:d"`` becomes None where the part has all of dim d, so that functions need not look for what lies outside.
    """
    args, kwargs = list(op_args), dict[str, Any]()
    if args and isinstance(args[-1], dict) and "kw" in args[-1]:
        kwargs = {name: _value(value, inputs, part) for name, value in args.pop()["kw"].items()}
    return [_value(arg, inputs, part) for arg in args], kwargs


def execute(op: Op, rule: Rule, inputs: Sequence[Tensor], part: Part) -> tuple[Tensor, ...]:
    """The outputs of one part of ``op``; ``inputs`` are the parts that the rule asks for."""
    args, kwargs = bind(op.args, inputs, part)
    found = function(op.target)(*args, **kwargs)
    outs = (found,) if isinstance(found, Tensor) else tuple(found)
    return outs[: len(rule.outs)]


def render(op: Op, names: Sequence[str], part: Part, constants: dict[str, Any], *, seed: str = "seed") -> str:
    """One part of ``op`` as Python source: a call of its function on the variables ``names``.

    What source cannot spell (the function, dtypes, regions) is put into ``constants``, which are to be the globals of
    the code; ``seed`` is the variable that holds (seed, step).
    """
    args, kwargs = bind(op.args, [_Source(name) for name in names], replace(part, seed=_Source(seed)))
    given = [_spell(arg, constants) for arg in args]
    given += [f"{name}={_spell(value, constants)}" for name, value in kwargs.items()]
    return f"{_named(function(op.target), op.target.replace('.', '_'), constants)}({', '.join(given)})"


def _named(value: Any, name: str, constants: dict[str, Any]) -> str:
    """A global that holds ``value``: ``name``, or that with a number behind it."""
    candidate, number = name, 1
    while candidate in constants and constants[candidate] != value:
        number += 1
        candidate = f"{name}_{number}"
    constants[candidate] = value
    return candidate


def _spell(value: Any, constants: dict[str, Any]) -> str:
    if isinstance(value, _Source):
        return str(value)
    if isinstance(value, Region):
        return _named(value, "region", constants)
    if isinstance(value, list | tuple):
        items = [_spell(item, constants) for item in value]
        return f"[{', '.join(items)}]" if isinstance(value, list) else f"({''.join(i + ', ' for i in items)})"
    if isinstance(value, torch.dtype):
        return _named(value, str(value).removeprefix("torch."), constants)
    if isinstance(value, float) and not isfinite(value):
        return f"float('{value}')"
    return repr(value)
