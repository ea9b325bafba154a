"""Gradients of a convolution, input and weight apart (they are scheduled apart)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_backward = torch.ops.aten.convolution_backward.default


def convolution_backward_input(grad: Tensor, weight: Tensor, shape: Sequence[int], *settings: Any) -> Tensor:
    """The gradient of an input of ``shape``.

    ``settings``: stride, padding, dilation, transposed, output padding, groups.
    """
    x = grad.new_empty(shape)  # the kernel reads its shape only
    return _backward(grad, x, weight, None, *settings, [True, False, False])[0]


def convolution_backward_weight(grad: Tensor, x: Tensor, shape: Sequence[int], *settings: Any) -> Tensor:
    """The gradient of a weight of ``shape``; settings as for the input."""
    weight = grad.new_empty(shape)
    return _backward(grad, x, weight, None, *settings, [False, True, False])[1]
