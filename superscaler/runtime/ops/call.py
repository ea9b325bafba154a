"""From an op's arguments, as data, to a call: placeholders replaced by what they stand for in one part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.graph import ITEMSIZE, Op
from superscaler.ir.rules.build import input_of
from superscaler.ir.rules.part import Part
from superscaler.ir.rules.rule import Rule
from superscaler.runtime.ops.table import function

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEMSIZE}


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
