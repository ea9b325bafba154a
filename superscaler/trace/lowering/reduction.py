"""Reductions as sums wherever a sum says it, so that a split dim gives partial sums: mean, variance, norms."""

from __future__ import annotations

from math import prod

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result, dims_of
from superscaler.trace.lowering.pointwise import binary, cast, scale
from superscaler.trace.views import reshape


def total(b: Builder, x: Value, dims: list[int], *, keepdim: bool = False) -> Value:
    """The sum over ``dims`` (sorted, not negative)."""
    if not dims:
        return x
    kept = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
    shape = kept if keepdim else tuple(n for i, n in enumerate(x.shape) if i not in dims)
    count = prod(x.shape[d] for d in dims)
    if x.fill is not None and x.floating:
        return b.full(shape, x.fill * count, x.dtype)
    if count == 1:
        return reshape(b, x, shape)
    return b.op("aten.sum.dim_IntList", [x, dims, keepdim], (shape, x.dtype))


def mean(b: Builder, x: Value, dims: list[int], *, keepdim: bool = False, less: float = 0) -> Value:
    """The sum over ``dims`` divided by the count of elements less ``less``."""
    count = prod(x.shape[d] for d in dims) - less
    return scale(b, total(b, x, dims, keepdim=keepdim), 1.0 / count if count > 0 else float("nan"))


def _sum(b: Builder, c: Call) -> Result:
    x = cast(b, c["self"], c.out[1])
    return total(b, x, dims_of(c.named.get("dim"), x.rank), keepdim=c.named.get("keepdim", False))


def _mean(b: Builder, c: Call) -> Result:
    x = cast(b, c["self"], c.out[1])
    return mean(b, x, dims_of(c.named.get("dim"), x.rank), keepdim=c.named.get("keepdim", False))


def _variance(b: Builder, c: Call) -> tuple[Value, Value]:
    """The variance and the mean, of which the second keeps its dims."""
    x: Value = c["self"]
    dims = dims_of(c["dim"], x.rank)
    correction = 1 if c["correction"] is None else c["correction"]
    center = mean(b, x, dims, keepdim=True)
    deviation = binary(b, "sub", x, center, (x.shape, x.dtype))
    square = binary(b, "mul", deviation, deviation, (x.shape, x.dtype))
    return mean(b, square, dims, keepdim=c["keepdim"], less=correction), center


def _var(b: Builder, c: Call) -> Result:
    return _variance(b, c)[0]


def _var_mean(b: Builder, c: Call) -> Result:
    variance, center = _variance(b, c)
    return variance, reshape(b, center, variance.shape)


def _std(b: Builder, c: Call) -> Result:
    return b.op("aten.sqrt.default", [_variance(b, c)[0]], c.out)


def _vector_norm(b: Builder, c: Call) -> Result:
    x = cast(b, c["self"], c.out[1])
    order = c.named.get("ord", c.named.get("p", 2))
    dims = dims_of(c["dim"], x.rank)
    like = (x.shape, x.dtype)
    if order in (1, 1.0):
        return total(b, b.op("aten.abs.default", [x], like), dims, keepdim=c["keepdim"])
    if order in (2, 2.0, None):
        squares = total(b, binary(b, "mul", x, x, like), dims, keepdim=c["keepdim"])
        return b.op("aten.sqrt.default", [squares], c.out)
    return b.op(c.target, [x, order, dims, c["keepdim"]], c.out)


def _extremum(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return b.op(c.target, [x, dims_of(c["dim"], x.rank), c["keepdim"]], c.out)


def _whole_extremum(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return b.op(f"aten.a{c.target.split('.')[1]}.default", [x, list(range(x.rank)), False], c.out)


def _along(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    args = [c["dim"] % x.rank if n == "dim" and x.rank else v for n, v in c.named.items() if n != "dtype"]
    return b.op(c.target, args, c.out)


def _softmax(b: Builder, c: Call) -> Result:
    x = cast(b, c["self"], c.out[1])
    return b.op(c.target, [x, c["dim"] % x.rank if x.rank else 0, False], c.out)


def _softmax_backward(b: Builder, c: Call) -> Result:
    grad, output = c["grad_output"], c["output"]
    dim = c["dim"] % output.rank if output.rank else 0
    inner = b.op(c.target, [grad, output, dim, output.dtype], (output.shape, output.dtype))
    return cast(b, inner, c.out[1])


LOWERINGS: dict[str, Lowering] = {
    "aten.sum.default": _sum,
    "aten.sum.dim_IntList": _sum,
    "aten.mean.default": _mean,
    "aten.mean.dim": _mean,
    "aten.var.correction": _var,
    "aten.std.correction": _std,
    "aten.var_mean.correction": _var_mean,
    "aten.linalg_vector_norm.default": _vector_norm,
    "aten.norm.ScalarOpt_dim": _vector_norm,
    "aten.amax.default": _extremum,
    "aten.amin.default": _extremum,
    "aten.max.default": _whole_extremum,
    "aten.min.default": _whole_extremum,
    "aten.cumsum.default": _along,
    "aten.cumprod.default": _along,
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _softmax,
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten._log_softmax_backward_data.default": _softmax_backward,
}
