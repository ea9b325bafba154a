"""Layer norm: its backward in parts, so that the gradients of input, weight and bias can be scheduled apart."""

from __future__ import annotations

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.reduction import total


def _layer_norm(b: Builder, c: Call) -> Result:
    likes = [like for like in c.outs if like is not None]
    args = [c["input"], list(c["normalized_shape"]), c["weight"], c["bias"], c["eps"]]
    return b.ops_of(c.target, args, *likes).outputs


def _layer_norm_backward(b: Builder, c: Call) -> Result:
    grad, x, mean, rstd = (c[name] for name in ("grad_out", "input", "mean", "rstd"))
    weight: Value | None = c["weight"]
    batch = list(range(x.rank - len(c["normalized_shape"])))
    shape = tuple(c["normalized_shape"])
    wanted: list[bool] = c["output_mask"]
    weights = [] if weight is None else [weight]
    backward = "superscaler.layer_norm_backward"
    return (
        b.op(f"{backward}_input", [grad, x, mean, rstd, *weights], (x.shape, x.dtype)) if wanted[0] else None,
        b.op(f"{backward}_weight", [grad, x, mean, rstd], (shape, x.dtype)) if wanted[1] and weight else None,
        total(b, grad, batch) if wanted[2] and c["bias"] is not None else None,
    )


LOWERINGS: dict[str, Lowering] = {
    "aten.native_layer_norm.default": _layer_norm,
    "aten.native_layer_norm_backward.default": _layer_norm_backward,
}
