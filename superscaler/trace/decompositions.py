"""Fused ATen ops that torch itself takes apart, asked for by name: losses, group and batch norms, and the like."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch._decomp import get_decompositions

_NAMES = (
    "mse_loss",
    "mse_loss_backward",
    "smooth_l1_loss",
    "smooth_l1_loss_backward",
    "huber_loss",
    "huber_loss_backward",
    "soft_margin_loss",
    "soft_margin_loss_backward",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "binary_cross_entropy_with_logits",
    "native_group_norm",
    "native_group_norm_backward",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update_functional",
    "_batch_norm_no_update",
    "native_batch_norm",
    "native_batch_norm_backward",
    "batch_norm_backward",
    "_fused_rms_norm",
    "_fused_rms_norm_backward",
    "glu",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "linspace",
    "eye",
    "index_fill",
    "aminmax",
    "addmv",
    "triu_indices",
    "tril_indices",
    "_euclidean_dist",
    "glu_backward",
    "addcmul",
    "addcdiv",
    "lerp",
    "logaddexp",
    "im2col",
    "col2im",
    "_prelu_kernel",
    "_prelu_kernel_backward",
    "rrelu_with_noise",
    "renorm",
    "trace",
    "dist",
    "frobenius_norm",
    "std_mean",
    "linalg_cross",
)


@lru_cache(maxsize=1)
def table() -> dict[Any, Callable[..., Any]]:
    """Those that this version of torch has a decomposition for."""
    packets = [getattr(torch.ops.aten, name) for name in _NAMES if hasattr(torch.ops.aten, name)]
    overloads = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    return dict(get_decompositions(overloads))
