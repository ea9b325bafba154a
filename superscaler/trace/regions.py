"""One opaque op for a whole call of a module, while the model around it is traced (see :mod:`.repeats`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from superscaler.trace.draft import dtype_name
from superscaler.trace.library import NAMESPACE


@dataclass(frozen=True)
class Layout:
    """What a traced tensor is, but for its place."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    requires_grad: bool

    @staticmethod
    def of(x: Tensor) -> Layout:
        return Layout(tuple(x.shape), tuple(x.stride()), dtype_name(x.dtype), x.requires_grad)

    def empty(self) -> Tensor:
        """Such a tensor; one whose elements overlap in memory becomes one that lies row by row."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if any(stride == 0 and size > 1 for stride, size in zip(self.stride, self.shape, strict=True)):
            return torch.empty(self.shape, dtype=dtype)
        return torch.empty_strided(self.shape, self.stride, dtype=dtype)


def encoded(layouts: Sequence[Layout]) -> str:
    """Layouts as text, which an op can take as an argument."""
    return json.dumps([[x.shape, x.stride, x.dtype, x.requires_grad] for x in layouts])


@lru_cache(maxsize=4096)
def decoded(text: str) -> tuple[Layout, ...]:
    """The layouts that :func:`encoded` wrote."""
    return tuple(Layout(tuple(a), tuple(b), c, d) for a, b, c, d in json.loads(text))


@custom_op(f"{NAMESPACE}::region", mutates_args=())
def region(inputs: list[Tensor], outputs: str, call: int) -> list[Tensor]:
    """The outputs of call number ``call``, whose layouts ``outputs`` tells."""
    raise NotImplementedError("superscaler_trace ops are traced, never run")


@region.register_fake
def _(inputs: list[Tensor], outputs: str, call: int) -> list[Tensor]:
    return [layout.empty() for layout in decoded(outputs)]


@custom_op(f"{NAMESPACE}::region_backward", mutates_args=())
def region_backward(
    grads: list[Tensor], inputs: list[Tensor], present: list[int], wanted: list[int], call: int
) -> list[Tensor]:
    """The gradients of the inputs numbered in ``wanted``, given those of the outputs numbered in ``present``."""
    raise NotImplementedError("superscaler_trace ops are traced, never run")


@region_backward.register_fake
def _(grads: list[Tensor], inputs: list[Tensor], present: list[int], wanted: list[int], call: int) -> list[Tensor]:
    return [inputs[i].new_empty(inputs[i].shape) for i in wanted]


class _Region(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: str, call: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        results = region(list(inputs), outputs, call)
        fixed = [x for x, layout in zip(results, decoded(outputs), strict=True) if not layout.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.saved_tensors)
        present = [i for i, grad in enumerate(grad_outputs) if grad is not None]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found: list[Tensor | None] = [None] * len(inputs)
        if present and wanted:
            given = [grad for grad in grad_outputs if grad is not None]
            for i, grad in zip(wanted, region_backward(given, inputs, present, wanted, ctx.call), strict=True):
                found[i] = grad
        return (None, None, *found)


def call_region(inputs: Sequence[Tensor], outputs: str, call: int) -> tuple[Tensor, ...]:
    """The outputs of a call as one op, with its backward as another."""
    return _Region.apply(outputs, call, *inputs)
