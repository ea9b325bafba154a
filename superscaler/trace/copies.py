"""A copy of a model with fake tensors: its structure and settings, none of its data; the original is never touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.parameter import is_lazy

from superscaler.errors import TraceError


def fake_like(tensor: Tensor, mode: FakeTensorMode, dtype: torch.dtype | None) -> Tensor:
    """A fake tensor of the same shape on the CPU; floats in ``dtype`` unless that is None."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    with mode:
        return torch.empty(tensor.shape, dtype=kind, device="cpu")


def fake_copy(
    model: nn.Module, mode: FakeTensorMode, *, parameters: torch.dtype, buffers: torch.dtype | None, gradients: bool
) -> nn.Module:
    """The model over fake parameters and buffers of these dtypes; shared ones stay shared.

    ``gradients=False`` freezes every parameter. Raises :class:`TraceError` if the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for module in model.modules():
            _fake_state(module, memo, mode, parameters, buffers, gradients)
        try:
            return copy.deepcopy(model, memo)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} cannot be copied: {error}",
                "tracing works on a copy, so that the model is left as it is",
                hint="keep locks, files, generators and tensors with a history out of the module",
            ) from None


def _fake_state(
    module: nn.Module,
    memo: dict[int, Any],
    mode: FakeTensorMode,
    parameters: torch.dtype,
    buffers: torch.dtype | None,
    gradients: bool,
) -> None:
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if is_lazy(parameter):
            raise TraceError(
                f"parameter {name} of {type(module).__name__} has no shape yet", hint="run the model once before"
            )
        if id(parameter) not in memo:
            fake = fake_like(parameter, mode, parameters)
            memo[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad and gradients)
    for _, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if id(buffer) not in memo:
            memo[id(buffer)] = fake_like(buffer, mode, buffers)
    for value in vars(module).values():
        if isinstance(value, Tensor) and id(value) not in memo:
            memo[id(value)] = _constant(value, mode, buffers)


def _constant(value: Tensor, mode: FakeTensorMode, dtype: torch.dtype | None) -> Tensor:
    """A tensor kept outside parameters and buffers: its values matter, so a real one stays real."""
    if isinstance(value, FakeTensor):
        return fake_like(value, mode, dtype)
    kept = value.detach().cpu()
    return kept.to(dtype) if dtype is not None and kept.is_floating_point() else kept


def fake_mode_of(*tensors: Tensor) -> FakeTensorMode | None:
    """The fake mode that one of these belongs to, if any."""
    return next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)
