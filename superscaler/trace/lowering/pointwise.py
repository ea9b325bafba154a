"""Pointwise arithmetic: scalars are attributes, constants fold, what changes nothing vanishes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from superscaler.trace.draft import Builder, Like, Number, Value, dtype_name
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.views import expand

_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


def binary(b: Builder, name: str, x: Value, y: Value | Number, like: Like) -> Value:
    """``x name y`` for add, sub, mul or div; a constant ``y`` becomes an attribute of the op."""
    if "float" in like[1] and not x.floating and not (isinstance(y, Value) and y.floating):
        x = cast(b, x, like[1])  # else the result is of the default dtype of whoever runs it
    if name in ("add", "mul") and x.fill is not None and isinstance(y, Value):
        x, y = y, x
    number = y.fill if isinstance(y, Value) else y
    if number is None or not _fits(x, y, like):
        return b.op(f"aten.{name}.Tensor", [x, y], like)
    if x.fill is not None and not (name == "div" and number == 0):
        return b.full(like[0], _FOLD[name](x.fill, number), like[1])
    if number == _NEUTRAL[name] and x.dtype == like[1]:
        return expand(b, x, like[0])
    if x.shape != like[0]:
        return b.op(f"aten.{name}.Tensor", [x, y], like)
    return b.op(f"aten.{name}.Scalar", [x, number], like)


def _fits(x: Value, y: Value | Number, like: Like) -> bool:
    """Whether the constant ``y`` decides nothing but a number: not the result's dtype."""
    if x.fill is not None:
        return x.floating and like[1] in ("float32", "float64")
    return x.dtype == like[1] or not isinstance(y, Value)


def scale(b: Builder, x: Value, factor: float) -> Value:
    """``x`` times a number."""
    return binary(b, "mul", x, factor, (x.shape, x.dtype))


def mul(b: Builder, x: Value, y: Value, shape: tuple[int, ...] | None = None) -> Value:
    """The product, of the shape of ``x`` unless another is given."""
    return binary(b, "mul", x, y, (x.shape if shape is None else shape, x.dtype))


def cast(b: Builder, x: Value, dtype: str) -> Value:
    """``x`` in another dtype."""
    if x.dtype == dtype:
        return x
    if x.fill is not None:
        value = x.fill if "float" in dtype else bool(x.fill) if dtype == "bool" else int(x.fill)
        return b.full(x.shape, value, dtype)
    return b.op("superscaler.cast", [x, dtype], (x.shape, dtype))


def _arithmetic(name: str) -> Lowering:
    def lower(b: Builder, c: Call) -> Result:
        x, y, like = c["self"], c["other"], c.out
        alpha = c.named.get("alpha", 1)
        if alpha != 1:
            y = scale(b, y, alpha) if isinstance(y, Value) else y * alpha
        return binary(b, name, x, y, like)

    return lower


def _to_copy(b: Builder, c: Call) -> Result:
    return cast(b, c["self"], c.out[1])


def _neg(b: Builder, c: Call) -> Result:
    x: Value = c["self"]
    return b.full(x.shape, -x.fill, x.dtype) if x.fill is not None else b.op(c.target, [x], c.out)


def _identity(b: Builder, c: Call) -> Result:
    return c.args[0]


def _convert_element_type(b: Builder, c: Call) -> Result:
    return cast(b, c.args[0], dtype_name(c.args[1]))


def _where(b: Builder, c: Call) -> Result:
    shape, dtype = c.out
    condition, *given = c["condition"], c["self"], c["other"]
    x, y = (cast(b, v, dtype) if isinstance(v, Value) else b.full((), v, dtype) for v in given)
    if x.fill is not None and x.fill == y.fill:
        return b.full(shape, x.fill, dtype)
    return b.op("aten.where.self", [condition, x, y], c.out)


def _copy(b: Builder, c: Call) -> Result:
    return expand(b, cast(b, c["src"], c.out[1]), c.out[0])


LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}.{form}": _arithmetic(name) for name in _FOLD for form in ("Tensor", "Scalar")},
    "aten._to_copy.default": _to_copy,
    "aten.copy.default": _copy,
    "aten.neg.default": _neg,
    **{f"aten.where.{form}": _where for form in ("self", "Scalar", "ScalarSelf", "ScalarOther")},
    "prims.convert_element_type.default": _convert_element_type,
    **{
        f"aten.{name}.default": _identity
        for name in ("clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous", "positive")
    },
}
