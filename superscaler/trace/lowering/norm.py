"""Layer norm over one dim: its backward in parts, so that the gradients of input, weight and bias are scheduled apart.

Where several dims are normalised they are merged first.
"""

from __future__ import annotations

from math import prod

from superscaler.trace.draft import Builder, Shape, Value
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.reduction import total
from superscaler.trace.views import reshape


def _merged(b: Builder, x: Value, normalised: int) -> Value:
    """The last ``normalised`` dims as one."""
    lead = x.shape[: x.rank - normalised]
    return reshape(b, x, (*lead, prod(x.shape[x.rank - normalised :])))


def _layer_norm(b: Builder, c: Call) -> Result:
    count = len(c["normalized_shape"])
    x = _merged(b, c["input"], count)
    weight, bias = (None if c[name] is None else _merged(b, c[name], count) for name in ("weight", "bias"))
    likes = [like for like in c.outs if like is not None]
    statistics: Shape = (*x.shape[:-1], 1)
    shapes = (x.shape, statistics, statistics)
    told = [(shape, like[1]) for shape, like in zip(shapes, likes, strict=True)]
    op = b.ops_of(c.target, [x, [x.shape[-1]], weight, bias, c["eps"]], *told)
    return tuple(reshape(b, value, like[0]) for value, like in zip(op.outputs, likes, strict=True))


def _layer_norm_backward(b: Builder, c: Call) -> Result:
    shape: Shape = tuple(c["normalized_shape"])
    grad, x, mean, rstd = (_merged(b, c[name], len(shape)) for name in ("grad_out", "input", "mean", "rstd"))
    weights = [] if c["weight"] is None else [_merged(b, c["weight"], len(shape))]
    wanted: list[bool] = c["output_mask"]
    backward = "superscaler.layer_norm_backward"
    of_input = of_weight = of_bias = None
    if wanted[0]:
        out = b.op(f"{backward}_input", [grad, x, mean, rstd, *weights], (x.shape, x.dtype))
        of_input = reshape(b, out, c["input"].shape)
    if wanted[1] and weights:
        out = b.op(f"{backward}_weight", [grad, x, mean, rstd], (x.shape[-1:], x.dtype))
        of_weight = reshape(b, out, shape)
    if wanted[2] and c["bias"] is not None:
        of_bias = reshape(b, total(b, grad, list(range(x.rank - 1))), shape)
    return of_input, of_weight, of_bias


LOWERINGS: dict[str, Lowering] = {
    "aten.native_layer_norm.default": _layer_norm,
    "aten.native_layer_norm_backward.default": _layer_norm_backward,
}
