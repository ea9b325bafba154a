"""Tensors that a model's code holds: ops where they are small or regular, else buffers named by where they are held."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from superscaler.trace.draft import Builder, Value, dtype_name
from superscaler.trace.views import reshape

_MOST = 64  # runs of equal values that are written as ops


def known(tensor: Tensor) -> Tensor | None:
    """The tensor with its values, or None for a fake one that has none."""
    if not isinstance(tensor, FakeTensor):
        return tensor.detach()
    constant: Tensor | None = getattr(tensor, "constant", None)
    return constant


def held(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that modules hold beside parameters and buffers, by path: ``layers.0.table``."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def name_of(tensor: Tensor, among: Mapping[str, Tensor]) -> str | None:
    """The path of ``tensor``, which tracing may have wrapped anew, among those that are held."""
    for name, value in among.items():
        same = value is tensor
        if not same and not isinstance(value, FakeTensor) and not isinstance(tensor, FakeTensor):
            same = value.shape == tensor.shape and value.data_ptr() == tensor.data_ptr()
        if same:
            return name
    return None


def as_op(b: Builder, tensor: Tensor) -> Value | None:
    """``arange`` if the elements count up evenly, ``full`` for each run of equal ones; None if there are too many."""
    values = known(tensor)
    if values is None or values.is_complex():
        return None
    shape, dtype = tuple(values.shape), dtype_name(values.dtype)
    flat = values.flatten()
    if len(flat) > 2 and not values.is_floating_point() and dtype != "bool":
        start, step = int(flat[0]), int(flat[1] - flat[0])
        if step and torch.equal(flat, torch.arange(len(flat), dtype=values.dtype) * step + start):
            like = ((len(flat),), dtype)
            return reshape(b, b.op("superscaler.arange", [start, step, dtype, "#start:n", "#local:n"], like), shape)
    if not len(flat) or bool((flat == flat[0]).all()):
        return b.full(shape, flat[0].item() if len(flat) else 0, dtype)
    elements, counts = torch.unique_consecutive(flat, return_counts=True)
    if len(elements) > _MOST:
        return None
    runs = [b.full((n,), x, dtype) for x, n in zip(elements.tolist(), counts.tolist(), strict=True)]
    return reshape(b, b.op("aten.cat.default", [runs, 0], ((len(flat),), dtype)), shape)
