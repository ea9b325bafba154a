"""The arguments of a call, flattened: tensors by name, settings as they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from superscaler.errors import TraceError, UsageError
from superscaler.ir.argument import shown

_STATIC = (bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Slot:
    """Where a tensor stood among the leaves of a call."""


SLOT = Slot()


def is_static(leaf: Any) -> bool:
    """Whether a leaf is a setting, which a trace keeps as it is."""
    return leaf is None or isinstance(leaf, _STATIC)


def path_key(entry: Any) -> Any:
    """The index, key or name that one step of a pytree's path stands for."""
    for attribute in ("idx", "key", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


@dataclass(frozen=True)
class Inputs:
    """``tensors``: by name, in order. ``leaves``: settings, and a :class:`Slot` for each tensor.

    ``stated``: the arguments, defaults too, by name in the signature's order -> a setting as Python writes it, or ""
    for a tensor.
    """

    tensors: dict[str, Tensor]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    stated: dict[str, str]

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` with these tensors, in order, in place of the named ones."""
        return filled(self.leaves, self.spec, tensors)


def filled(leaves: Sequence[Any], spec: pytree.TreeSpec, tensors: Sequence[Tensor]) -> Any:
    """The tree of ``leaves`` with ``tensors``, in order, in its slots."""
    given = iter(tensors)
    return pytree.tree_unflatten([next(given) if leaf is SLOT else leaf for leaf in leaves], spec)


def bind(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """Name the tensors of a call by the forward's signature.

    Raises :class:`TraceError` if the call does not fit the signature, or has an argument that is no tensor or setting.
    """
    _refuse_other(model, args, kwargs)
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(f"the inputs do not fit {type(model).__name__}: {error}", f"forward{signature}",
                         hint="args: a tuple of what forward takes by place; kwargs: by name") from None  # fmt: skip
    order = list(signature.parameters)
    named = dict(sorted(kwargs.items(), key=lambda item: _rank(order, item[0])))
    paths, spec = pytree.tree_flatten_with_path((tuple(args), named))
    tensors: dict[str, Tensor] = {}
    leaves: list[Any] = []
    stated: dict[str, str] = {}
    for path, leaf in paths:
        name = _name(signature, [path_key(entry) for entry in path])
        stated[name] = "" if isinstance(leaf, Tensor) else repr(leaf)
        if isinstance(leaf, Tensor):
            tensors[name] = leaf
            leaves.append(SLOT)
        elif is_static(leaf):
            leaves.append(leaf)
        else:
            raise TraceError(
                f"input {name} is a {type(leaf).__name__}, not a tensor",
                hint="torch.as_tensor(...) makes a tensor of numbers",
            )
    if not tensors:
        raise TraceError("no input is a tensor", hint="pass a batch: trace(model, (ids, labels))")
    return Inputs(tensors, tuple(leaves), spec, _with_defaults(signature, stated))


def _rank(order: Sequence[str], name: str) -> int:
    """The place of a forward's argument in its signature; behind all for those that it takes by any name."""
    first = name.partition(".")[0]
    return order.index(first) if first in order else len(order)


def _with_defaults(signature: inspect.Signature, stated: Mapping[str, str]) -> dict[str, str]:
    """The arguments of a call in the signature's order, with the settings that were not given."""
    order = list(signature.parameters)
    given = {name.partition(".")[0] for name in stated}
    defaults = {p.name: repr(p.default) for p in signature.parameters.values() if is_static(p.default)}
    every = {**stated, **{name: default for name, default in defaults.items() if name not in given}}
    return dict(sorted(every.items(), key=lambda item: _rank(order, item[0])))


def _refuse_other(model: object, args: object, kwargs: object) -> None:
    """Raise :class:`UsageError` for what is no module, or no arguments of one."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else shown(model)
        raise UsageError(f"{what} is no module", hint="an instance of torch.nn.Module: Net(), not Net")
    if isinstance(args, Tensor | str | bytes) or not isinstance(args, Sequence):
        raise UsageError(f"args: {shown(args)} is not several", hint="a tuple: (ids, labels), or (x,) of one")
    if not isinstance(kwargs, Mapping):
        raise UsageError(f"kwargs: {shown(kwargs)} has no names", hint='{"labels": labels}, say')


def _name(signature: inspect.Signature, path: Sequence[Any]) -> str:
    """The name of a leaf of ``(args, kwargs)``: ``ids``, ``batch.mask``, ``rest.0``."""
    part, key, *inside = path
    if part == 1:
        return ".".join(str(entry) for entry in (key, *inside))
    named = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in signature.parameters.values() if p.kind == p.VAR_POSITIONAL), "args")
    first = [named[key]] if key < len(named) else [rest, key - len(named)]
    return ".".join(str(entry) for entry in (*first, *inside))
