"""Pointwise ops: every dim can be split; operands are broadcast.

``LINEAR`` states, per target, the groups of *arguments* in which it is jointly linear: ``add`` in both at once and in
neither alone, ``mul`` in each alone. Functions of integers (floor, comparisons, casts to integers) are in none.
"""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import broadcast_dims, input_of, linear_groups, names, positional, rule_text
from superscaler.ir.rules.rule import Rule, Shape, Spec, parse_rule

# Functions of one tensor (further arguments are numbers), of none of which they are linear.
UNARY = (
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil", "clamp", "clamp_max", "clamp_min",
    "cos", "cosh", "digamma", "elu", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "floor", "frac", "gelu",
    "hardsigmoid", "hardswish", "hardtanh", "isfinite", "isinf", "isnan", "leaky_relu", "lgamma", "log", "log10",
    "log1p", "log2", "log_sigmoid_forward", "logical_not", "logit", "mish", "nan_to_num", "reciprocal", "relu", "round",
    "rsqrt", "sgn", "sigmoid", "sign", "signbit", "silu", "sin", "sinh", "softplus", "sqrt", "square", "tan", "tanh",
    "threshold", "trunc",
)  # fmt: skip
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
BITWISE = ("bitwise_and", "bitwise_or", "bitwise_xor")
BINARY = (
    "atan2", "fmax", "fmin", "hypot", "logaddexp", "logical_and", "logical_or", "logical_xor", "maximum", "minimum",
    "prelu",
)  # fmt: skip
# Gradients of functions of one tensor; the incoming gradient is the first argument, and each is linear in it.
BACKWARD = (
    "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "logit", "mish", "sigmoid",
    "silu", "softplus", "tanh", "threshold",
)  # fmt: skip

LINEAR: dict[str, tuple[tuple[int, ...], ...]] = {
    **{f"aten.{name}.{form}": ((0, 1),) for name in ("add", "sub", "rsub") for form in ("Tensor", "Scalar")},
    **{f"aten.{name}_backward.default": ((0,),) for name in BACKWARD},
    "aten.neg.default": ((0,),),
    "aten.mul.Tensor": ((0,), (1,)),
    "aten.mul.Scalar": ((0,),),
    "aten.div.Tensor": ((0,),),
    "aten.div.Scalar": ((0,),),
    "aten.where.self": ((1, 2),),
    "aten.where.ScalarOther": ((1, 2),),
    "aten.where.ScalarSelf": ((1, 2),),
    "aten.masked_fill.Scalar": ((0, 2),),
    "aten.masked_fill.Tensor": ((0, 2),),
    "aten.lerp.Scalar": ((0, 1),),
    "aten.addcmul.default": ((0, 1), (0, 2)),
    "aten.addcdiv.default": ((0, 1),),
    "superscaler.sleep": ((0,),),
    "superscaler.sleep_backward": ((0,),),
    "superscaler.sleep_each": ((0,),),
    "superscaler.sleep_each_backward": ((0,),),
}
NOT_LINEAR = (
    *(f"aten.{name}.default" for name in (*UNARY, *BINARY)),
    *(f"aten.{name}.{form}" for name in (*COMPARISONS, *BITWISE) for form in ("Tensor", "Scalar")),
    *(f"aten.pow.{form}" for form in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")),
    *(f"aten.{name}.{form}" for name in ("remainder", "fmod") for form in ("Tensor", "Scalar")),
    *(f"aten.div.{form}" for form in ("Tensor_mode", "Scalar_mode")),
    "aten.bitwise_left_shift.Tensor_Scalar",
    "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.clamp.Tensor",
    "aten.clamp_max.Tensor",
    "aten.clamp_min.Tensor",
    "aten.floor_divide.default",
    "aten.isin.Tensor_Scalar",
    "aten.where.Scalar",
    "aten.xlogy.Tensor",
)
_FLOATS = ("float64", "float32", "bfloat16", "float16")


def broadcast_rule(
    family: str, ins: tuple[Shape, ...], outs: tuple[Shape, ...], linear: tuple[tuple[int, ...], ...]
) -> Rule:
    """Operands broadcast to the one shape that all outputs have."""
    dims = names(len(outs[0]))
    text = rule_text([broadcast_dims(shape, outs[0], dims) for shape in ins], [dims for _ in outs])
    return parse_rule(text, ins, outs, family=family, linear=linear)


def pointwise(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """All operands broadcast; linear as the table says."""
    return broadcast_rule("pointwise", ins, outs, linear_groups(op, LINEAR.get(op.target, ())))


def cast(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """A cast is linear into floats (to rounding), never into integers or bool."""
    return broadcast_rule("pointwise", ins, outs, ((0,),) if positional(op)[1] in _FLOATS else ())


def add_n(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """A sum of any number of tensors of one shape, linear in all of them together."""
    inputs = tuple(sorted({i for i in map(input_of, op.args) if i is not None}))
    return broadcast_rule("pointwise", ins, outs, (inputs,))


RULES: dict[str, Spec] = {
    **{target: Spec(pointwise, groups, shown="b s h, … -> b s h") for target, groups in LINEAR.items()},
    **{target: Spec(pointwise, shown="b s h, … -> b s h") for target in NOT_LINEAR},
    "superscaler.cast": Spec(cast, ((0,),), shown="b s h -> b s h"),
    "superscaler.add_n": Spec(add_n, ((0, 1),), shown="b s h, b s h, … -> b s h"),
}
