"""Tensors that a model's code holds: ops where they are regular, else buffers whose values lie beside the Graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from superscaler.trace.draft import Builder, Value, dtype_name


def known(tensor: Tensor) -> Tensor | None:
    """The tensor with its values, or None for a fake one that has none."""
    if not isinstance(tensor, FakeTensor):
        return tensor.detach()
    constant: Tensor | None = getattr(tensor, "constant", None)
    return constant


def as_op(b: Builder, tensor: Tensor) -> Value | None:
    """``full`` if all elements are equal, ``arange`` if they count up evenly; None for anything else."""
    values = known(tensor)
    if values is None or values.numel() == 0 or values.is_complex():
        return None
    shape, dtype = tuple(values.shape), dtype_name(values.dtype)
    first = values.flatten()[0]
    if bool((values == first).all()):
        return b.full(shape, first.item(), dtype)
    if values.ndim == 1 and not values.is_floating_point() and dtype != "bool":
        start, step = int(values[0]), int(values[1] - values[0])
        if torch.equal(values, torch.arange(len(values), dtype=values.dtype) * step + start):
            return b.op("superscaler.arange", [start, step, dtype, "#start:n", "#local:n"], (shape, dtype))
    return None
