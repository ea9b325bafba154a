"""What is exported: the user's model with its loss, from a flat list of tensors to the named results of an entry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from superscaler.errors import TraceError

Mode = Literal["train", "eval"]
Loss = Callable[[Any], Tensor]
_STATIC = (bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Inputs:
    """A call's arguments flattened: tensors by name, everything else as it is. ``leaves[i]`` is a name or a value."""

    tensors: dict[str, Tensor]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` with these tensors, in order, in place of the named ones."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, _Slot) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class _Slot:
    name: str


def bind(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """Name the tensors of a call by the forward's signature.

    Raises :class:`TraceError` if the call does not fit the signature, or has an argument that is no tensor or setting.
    """
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        signature = f"forward{inspect.signature(model.forward)}"
        raise TraceError(f"the inputs do not fit {type(model).__name__}: {error}", signature) from None
    paths, spec = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    by_value = {id(value): name for name, value in bound.arguments.items()}
    positions = [*bound.arguments]
    tensors: dict[str, Tensor] = {}
    leaves: list[Any] = []
    for path, leaf in paths:
        name = _path_name(path, args, by_value, positions)
        if isinstance(leaf, Tensor):
            tensors[name] = leaf
            leaves.append(_Slot(name))
        elif leaf is None or isinstance(leaf, _STATIC):
            leaves.append(leaf)
        else:
            raise TraceError(
                f"input {name} is a {type(leaf).__name__}, not a tensor",
                hint="torch.as_tensor(...) makes a tensor of numbers",
            )
    if not tensors:
        raise TraceError("no input is a tensor", hint="pass a batch: trace(model, (ids, labels))")
    return Inputs(tensors, tuple(leaves), spec)


def _path_name(path: Sequence[Any], args: Sequence[Any], by_value: dict[int, str], positions: list[str]) -> str:
    part, key, *rest = (_key(entry) for entry in path)
    if part == 0:
        position = int(key)
        name = by_value.get(id(args[position])) or (positions[position] if position < len(positions) else "args")
        if name not in positions[position : position + 1]:
            name = positions[position] if position < len(positions) else f"{positions[-1]}.{position}"
    else:
        name = str(key)
    return ".".join([name, *(str(entry) for entry in rest)])


def _key(entry: Any) -> Any:
    for attribute in ("idx", "key", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


@dataclass
class Results:
    """The names of an entry's results, known once it has run. (Export undoes changes to a module's own lists.)"""

    names: tuple[str, ...] = ()


class Entry(nn.Module):
    """``forward(*tensors)`` gives the loss alone in training; every named result in evaluation."""

    def __init__(self, model: nn.Module, inputs: Inputs, loss: Loss | None, mode: Mode) -> None:
        super().__init__()
        self.model = model
        self.results = Results()
        self._inputs = inputs
        self._loss = loss
        self._mode: Mode = mode

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._inputs.call(tensors)
        before = dict(self.model.named_buffers(remove_duplicate=False))
        output = self.model(*args, **kwargs)
        self._write_back(before)
        loss = self._loss(output) if self._loss is not None else _loss_of(output)
        results = {} if loss is None and self._mode == "eval" else {"loss": _scalar(loss, output)}
        if self._mode == "eval":
            results |= {name: value for name, value in _tensors_of(output).items() if value is not loss}
        self.results.names = tuple(results)
        return tuple(results.values())

    def _write_back(self, before: Mapping[str, Tensor]) -> None:
        """A buffer that the forward replaced is written to: autograd's trace sees writes, not assignments."""
        for name, value in self.model.named_buffers(remove_duplicate=False):
            old = before.get(name)
            if old is not None and old is not value:
                old.copy_(value)
                owner, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(owner), last, old)


def _loss_of(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output if output.numel() == 1 else None
    if isinstance(output, Mapping):
        return output.get("loss")
    return getattr(output, "loss", None)


def _scalar(loss: Any, output: Any) -> Tensor:
    if loss is None:
        kind = (
            f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        )
        raise TraceError(
            f"the model gives {kind}, which holds no loss",
            hint="loss=lambda output: ..., or (transformers) pass labels",
        )
    if not isinstance(loss, Tensor) or not loss.is_floating_point() or loss.numel() != 1:
        shape = f"of shape {tuple(loss.shape)} and {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TraceError(f"the loss must be one floating-point number; it is {shape}", hint="loss.mean(), say")
    return loss.reshape(())


def _tensors_of(output: Any) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"output": output}
    found: dict[str, Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(output)[0]:
        if isinstance(leaf, Tensor):
            name = ".".join(str(_key(entry)) for entry in path)
            found[name if not name[:1].isdigit() else f"output.{name}"] = leaf
    return found
