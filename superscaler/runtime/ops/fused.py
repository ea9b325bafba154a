"""Torch's fused attention kernels behind one shape of call, and which of them applies."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
_HALF = (torch.bfloat16, torch.float16)


class Kernel(Protocol):
    """Forward gives (out, log-sum-exp); backward gives (dq, dk, dv)."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]: ...

    @staticmethod
    def backward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        mask: Tensor | None, causal: bool, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip


def choose(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, p: float) -> type[Kernel] | None:
    """The kernel for these operands, or None. Dropout is ours (counter-based), so no fused kernel has it."""
    if p or q.shape[-1] != v.shape[-1] or not q.numel() or not k.numel():
        return None
    if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64, *_HALF):
        return CpuFlash
    if q.device.type == "cuda" and q.shape[-1] % 8 == 0:
        if (
            mask is None
            and q.dtype in _HALF
            and q.shape[-1] <= 256
            and torch.cuda.get_device_capability(q.device)[0] >= 8
        ):
            return CudaFlash
        if q.dtype in (torch.float32, *_HALF):
            return CudaEfficient
    return None


def _rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The kernels read rows: the last dim must be dense."""
    return tuple(t if t.stride(-1) == 1 else t.contiguous() for t in tensors)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as numbers to add; a number mask in the queries' dtype; of two or four dims."""
    if mask is None:
        return None
    if mask.ndim not in (2, 4):
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _shared(x: Tensor, heads: int) -> Tensor:
    """Each key-value head repeated for the query heads that share it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _unshared(grad: Tensor, heads: int) -> Tensor:
    return grad if grad.shape[1] == heads else grad.unflatten(1, (heads, -1)).sum(2)


class CpuFlash:
    """Torch's blocked attention for CPUs."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _rows(q, k, v)
        bias = additive(mask, q.dtype)
        return aten._scaled_dot_product_flash_attention_for_cpu.default(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )

    @staticmethod
    def backward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        mask: Tensor | None, causal: bool, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        g, q, keys, values, out = _rows(g, q, _shared(k, q.shape[1]), _shared(v, q.shape[1]), out)
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            g, q, keys, values, out, lse, 0.0, causal, attn_mask=additive(mask, q.dtype), scale=scale
        )
        return dq, _unshared(dk, k.shape[1]), _unshared(dv, v.shape[1])


class CudaFlash:
    """FlashAttention-2 in half precision (Dao 2023)."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _rows(q, k, v)
        found = aten._scaled_dot_product_flash_attention.default(q, k, v, 0.0, causal, False, scale=scale)
        return found[0], found[1]

    @staticmethod
    def backward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        mask: Tensor | None, causal: bool, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        g, q, keys, values, out = _rows(g, q, _shared(k, q.shape[1]), _shared(v, q.shape[1]), out)
        none = torch.empty(0, dtype=torch.uint64, device=q.device)
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward.default(
            g, q, keys, values, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, none, none, scale=scale
        )
        return dq, _unshared(dk, k.shape[1]), _unshared(dv, v.shape[1])


class CudaEfficient:
    """Memory-efficient attention (Rabe and Staats 2021) in float32 or with a mask; it pads its log-sum-exp."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        q, k, v = _rows(q, _shared(k, q.shape[1]), _shared(v, q.shape[1]))
        bias = _bias(mask, q, k)
        found = aten._scaled_dot_product_efficient_attention.default(q, k, v, bias, True, 0.0, causal, scale=scale)
        return found[0], found[1][:, :, : q.shape[2]].contiguous()

    @staticmethod
    def backward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        mask: Tensor | None, causal: bool, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        g, q, keys, values, out = _rows(g, q, _shared(k, q.shape[1]), _shared(v, q.shape[1]), out)
        padded = F.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
        none = torch.zeros((), dtype=torch.int64, device=q.device)
        dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward.default(
            g, q, keys, values, _bias(mask, q, keys), out, padded, none, none, 0.0,
            [True, True, True, False], causal, scale=scale,
        )  # fmt: skip
        return dq, _unshared(dk, k.shape[1]), _unshared(dv, v.shape[1])


def _bias(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask as a bias of all four dims whose rows start at multiples of 16 bytes, as the kernel reads them."""
    if mask is None:
        return None
    bias = additive(mask, q.dtype)
    assert bias is not None
    rows = F.pad(bias, (0, -bias.shape[-1] % 8)) if bias.shape[-1] == k.shape[2] else bias
    return rows[..., : k.shape[2]].expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
