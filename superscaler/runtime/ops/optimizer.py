"""Optimizer steps, equal to ``torch.optim``'s formulas. Scalars (learning rate, step, clip) are tensors of rank 0.

The functions here give new tensors; :data:`INPLACE` has the forms that overwrite the state they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

_fused = torch.ops.aten._fused_adamw_


def _wide(x: Tensor) -> Tensor:
    """Half precision is updated in float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, lr: Tensor, clip: Tensor | None,
    beta1: float, beta2: float, eps: float, weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of AdamW (Loshchilov and Hutter 2019): new parameter, first and second moment."""
    p, m, v = (x.clone(memory_format=torch.contiguous_format) for x in (p, m, v))
    return adamw_(p, g, m, v, step, lr, clip, beta1, beta2, eps, weight_decay)


def adamw_(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, lr: Tensor, clip: Tensor | None,
    beta1: float, beta2: float, eps: float, weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """AdamW in place. ``step`` counts this one; ``clip`` scales the gradient; moments and math in float32 at least."""
    if clip is not None:
        g = g * clip.to(g.dtype)
    count = step.float() if step.dtype != torch.float32 else step
    if p.dtype == g.dtype == m.dtype == v.dtype and p.dtype in (torch.float32, torch.float64):
        given = ([p], [g.contiguous()], [m], [v], [], [count])  # the kernel walks through memory, not by strides
        rates: dict[str, float] = {"beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "eps": eps}
        if lr.is_cuda:
            _fused.tensor_lr(*given, lr=lr, **rates, amsgrad=False, maximize=False)
        else:
            _fused.default(*given, lr=lr.item(), **rates, amsgrad=False, maximize=False)
        return p, m, v
    _adamw_by_hand(p, g, m, v, count.double(), lr.double(), beta1, beta2, eps, weight_decay)
    return p, m, v


def _adamw_by_hand(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, lr: Tensor,
    beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    wide, g = _wide(p), g.to(m.dtype)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    step_size = (lr / (1 - beta1**step)).to(wide.dtype)
    denominator = (_wide(v).sqrt() / (1 - beta2**step).sqrt().to(wide.dtype)).add_(eps)
    p.copy_(wide * (1 - lr * weight_decay).to(wide.dtype) - step_size * (_wide(m) / denominator))


def sgd(
    p: Tensor, g: Tensor, lr: Tensor, clip: Tensor | None, *rest: Tensor | float | bool
) -> Tensor | tuple[Tensor, Tensor]:
    """One step of SGD: see :func:`sgd_`; new parameter, and new momentum buffer if there is one."""
    state = [r.clone() if i == 0 and isinstance(r, Tensor) else r for i, r in enumerate(rest)]
    return sgd_(p.clone(), g, lr, clip, *state)


def sgd_(
    p: Tensor, g: Tensor, lr: Tensor, clip: Tensor | None, *rest: Tensor | float | bool
) -> Tensor | tuple[Tensor, Tensor]:
    """SGD in place: ``(p, g, lr, clip, [buf, [step]], momentum, dampening, nesterov, weight_decay)``.

    torch takes the first gradient as the first buffer, undampened: with dampening that needs ``step`` (1 at first).
    """
    momentum, dampening, nesterov, weight_decay = (float(x) for x in rest[-4:])
    state = [x for x in rest[:-4] if isinstance(x, Tensor)]
    wide = _wide(p)
    given, g = g, g.to(wide.dtype)
    if clip is not None:
        g = g * clip.to(g.dtype)
    if weight_decay:
        g = _plus(g, wide, weight_decay, fresh=g is not given)
    if not state:
        _descend(p, wide, g, lr)
        return p
    buf = state[0]
    buf.mul_(momentum)
    if len(state) > 1:
        buf.add_(g.to(buf.dtype) * torch.where(state[1] > 1, 1 - dampening, 1.0).to(buf.dtype))
    else:
        buf.add_(g.to(buf.dtype), alpha=1 - dampening)
    direction = _plus(g, buf, momentum, fresh=g is not given) if nesterov else buf
    _descend(p, wide, direction.to(wide.dtype), lr)
    return p, buf


def _plus(x: Tensor, y: Tensor, alpha: float, *, fresh: bool) -> Tensor:
    """``x + alpha * y``, in the place of ``x`` if that is nobody else's."""
    return x.add_(y, alpha=alpha) if fresh else x.add(y, alpha=alpha)


def _descend(p: Tensor, wide: Tensor, direction: Tensor, lr: Tensor) -> None:
    rate = lr.to(wide.dtype)
    if wide is p:
        p.addcmul_(direction, rate, value=-1)
    else:
        p.copy_(wide.addcmul(direction, rate, value=-1))


def sumsq(x: Tensor) -> Tensor:
    """The sum of squares of all elements, in float32 at least."""
    flat = _wide(x).reshape(-1)
    return torch.dot(flat, flat)


def clip_coefficient(total: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / (√total + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``."""
    return (max_norm / (total.sqrt() + 1e-6)).clamp_(max=1.0)
