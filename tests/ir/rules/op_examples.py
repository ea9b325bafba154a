"""Example inputs for every target of the rule table: shapes are drawn, values are small integers where possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from split_harness import Case
from torch import Tensor

from superscaler.ir.rules import pointwise

Draw = st.DrawFn
EXAMPLES: dict[str, Callable[[Draw, str], Case]] = {}


def example(*targets: str) -> Callable[[Callable[[Draw, str], Case]], Callable[[Draw, str], Case]]:
    def register(make: Callable[[Draw, str], Case]) -> Callable[[Draw, str], Case]:
        for target in targets:
            EXAMPLES[target] = make
        return make

    return register


def sizes(draw: Draw, low: int = 1, high: int = 4, most: int = 6) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, most), min_size=low, max_size=high)))


def size(draw: Draw, most: int = 6, low: int = 1) -> int:
    return draw(st.integers(low, most))


def generator(draw: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 1000)))


def ints(draw: Draw, *shape: int, low: int = -4, high: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(low, high, shape, generator=generator(draw)).to(dtype)


def reals(draw: Draw, *shape: int, low: float = -2, high: float = 2) -> Tensor:
    return torch.rand(shape, generator=generator(draw), dtype=torch.float64) * (high - low) + low


def bools(draw: Draw, *shape: int) -> Tensor:
    return ints(draw, *shape, low=0, high=2).bool()


def broadcast(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape``."""
    kept = tuple(draw(st.sampled_from([n, n, 1])) for n in shape)
    return kept[draw(st.integers(0, len(kept))) :] if draw(st.booleans()) else kept


def floats(draw: Draw, target: str) -> Case:
    """Real inputs of a function of one tensor."""
    bounds = {"acosh": (1.1, 3), "atanh": (-0.9, 0.9), "erfinv": (-0.9, 0.9), "logit": (0.1, 0.9)}
    name = target.split(".")[1]
    x = reals(draw, *sizes(draw, 0), low=bounds.get(name, (-2, 2))[0], high=bounds.get(name, (-2, 2))[1])
    if name in ("log", "log10", "log1p", "log2", "rsqrt", "sqrt", "lgamma", "digamma", "reciprocal"):
        x = x.abs() + 0.5
    if name in ("acos", "asin"):
        x = x / 2
    extra: dict[str, tuple[Any, ...]] = {
        "clamp": (-1, 1), "clamp_min": (0,), "clamp_max": (0,), "threshold": (0.5, 0.0), "logit": (None,),
        "gelu": ({"kw": {"approximate": "tanh"}},),
    }  # fmt: skip
    if name == "bitwise_not":
        x = ints(draw, *x.shape, dtype=torch.int64)
    return Case(target, [x], ("$0", *extra.get(name, ())), exact=False)


for _name in (*pointwise.UNARY, "neg"):
    EXAMPLES[f"aten.{_name}.default"] = floats


@example(*(f"aten.{n}_backward.default" for n in pointwise.BACKWARD))
def gradient(draw: Draw, target: str) -> Case:
    name = target.split(".")[1].removesuffix("_backward")
    shape = sizes(draw)
    inputs = [ints(draw, *shape), reals(draw, *shape, low=0.1, high=0.9)]
    extra: dict[str, tuple[Any, ...]] = {
        "threshold": (0.5,), "gelu": ({"kw": {"approximate": "tanh"}},), "softplus": (1.0, 20.0),
        "leaky_relu": (0.1, False), "hardtanh": (-0.5, 0.5), "logit": (None,),
    }  # fmt: skip
    if name == "log_sigmoid":
        inputs.append(torch.ops.aten.log_sigmoid_forward(inputs[1])[1])
        inputs[2] = inputs[2] if inputs[2].numel() else torch.exp(-inputs[1].abs())
        return Case(target, inputs, ("$0", "$1", "$2"), exact=False)
    if name == "elu":
        return Case(target, inputs, ("$0", 1.0, 1.0, 1.0, False, "$1"), exact=False)
    return Case(target, inputs, ("$0", "$1", *extra.get(name, ())), exact=False)


@example(
    *(f"aten.{n}.Tensor" for n in (*pointwise.COMPARISONS, "remainder", "fmod", "xlogy")),
    *(f"aten.{n}.default" for n in pointwise.BINARY if n != "prelu"),
    *(f"aten.{n}.Tensor" for n in ("add", "sub", "rsub", "mul", "clamp_min", "clamp_max")),
    "aten.pow.Tensor_Tensor", "aten.floor_divide.default",
)  # fmt: skip
def binary(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 0)
    left, right = (shape, broadcast(draw, shape)) if draw(st.booleans()) else (broadcast(draw, shape), shape)
    a, b = ints(draw, *left), ints(draw, *right)
    if target.split(".")[1] in ("remainder", "fmod", "floor_divide", "pow"):
        a, b = a.abs() + 1, b.abs() + 1
    alpha = target.split(".")[1] in ("add", "sub", "rsub") and draw(st.booleans())
    exact = target.split(".")[1] not in ("pow", "atan2", "hypot", "xlogy", "logaddexp")
    return Case(target, [a, b], ("$0", "$1", *([{"kw": {"alpha": 2}}] if alpha else [])), exact=exact)


@example("aten.div.Tensor", "aten.div.Tensor_mode", "aten.div.Scalar", "aten.div.Scalar_mode")
def division(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    x = ints(draw, *shape)
    mode = [{"kw": {"rounding_mode": draw(st.sampled_from(["floor", "trunc"]))}}] if "mode" in target else []
    if "Scalar" in target:
        return Case(target, [x], ("$0", 4, *mode))
    return Case(target, [x, 2.0 ** ints(draw, *broadcast(draw, shape))], ("$0", "$1", *mode))


@example(
    *(f"aten.{n}.Scalar" for n in (*pointwise.COMPARISONS, "add", "sub", "rsub", "mul", "remainder", "fmod")),
    "aten.pow.Tensor_Scalar", "aten.pow.Scalar", "aten.isin.Tensor_Scalar",
)  # fmt: skip
def with_scalar(draw: Draw, target: str) -> Case:
    x = ints(draw, *sizes(draw, 0))
    scalar = draw(st.sampled_from([0, 2, 3])) if "Scalar" in target and "add" in target else 2
    args = (scalar, "$0") if target == "aten.pow.Scalar" else ("$0", scalar)
    return Case(target, [x], args)


@example(
    *(f"aten.{n}.{form}" for n in pointwise.BITWISE for form in ("Tensor", "Scalar")),
    "aten.bitwise_left_shift.Tensor_Scalar", "aten.bitwise_right_shift.Tensor_Scalar",
)  # fmt: skip
def bitwise(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    x = ints(draw, *shape, dtype=torch.int64)
    if target.endswith("Scalar"):
        return Case(target, [x], ("$0", 3))
    return Case(target, [x, ints(draw, *broadcast(draw, shape), dtype=torch.int64)], ("$0", "$1"))


@example("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    condition, x = bools(draw, *broadcast(draw, shape)), ints(draw, *shape)
    constant = draw(st.sampled_from([0, 0.0, 3]))
    form = target.split(".")[2]
    if form == "self":
        return Case(target, [condition, x, ints(draw, *broadcast(draw, shape))], ("$0", "$1", "$2"))
    if form == "Scalar":
        return Case(target, [bools(draw, *shape)], ("$0", 1.0, 2.0))
    args = ("$0", "$1", constant) if form == "ScalarOther" else ("$0", constant, "$1")
    return Case(target, [condition, x], args)


@example("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    x, mask = ints(draw, *shape), bools(draw, *broadcast(draw, shape))
    if target.endswith("Tensor"):
        return Case(target, [x, mask, ints(draw)], ("$0", "$1", "$2"))
    return Case(target, [x, mask], ("$0", "$1", draw(st.sampled_from([0, 7, float("-inf")]))))


@example("aten.lerp.Scalar", "aten.addcmul.default", "aten.addcdiv.default", "aten.clamp.Tensor", "aten.prelu.default")
def ternary(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 2)
    x, y, z = ints(draw, *shape), ints(draw, *shape), 2.0 ** ints(draw, *shape)
    match target.split(".")[1]:
        case "lerp":
            return Case(target, [x, y], ("$0", "$1", 0.5))
        case "prelu":
            return Case(target, [x, ints(draw, 1)], ("$0", "$1"))
        case _:
            return Case(target, [x, y, z], ("$0", "$1", "$2"))


@example("superscaler.cast")
def cast(draw: Draw, target: str) -> Case:
    return Case(
        target, [ints(draw, *sizes(draw, 0))], ("$0", draw(st.sampled_from(["float32", "float64", "int64", "bool"])))
    )


@example("superscaler.add_n")
def add_n(draw: Draw, target: str) -> Case:
    shape, count = sizes(draw, 0), size(draw, 4)
    return Case(target, [ints(draw, *shape) for _ in range(count)], tuple(f"${i}" for i in range(count)))


@example("superscaler.sleep", "superscaler.sleep_backward", "superscaler.sleep_each", "superscaler.sleep_each_backward")
def sleep(draw: Draw, target: str) -> Case:
    return Case(target, [ints(draw, *sizes(draw))], ("$0", 0.001, *([] if target.endswith("backward") else [0.001])))


@example("aten.mm.default")
def mm(draw: Draw, target: str) -> Case:
    b, h, o = size(draw), size(draw, 12), size(draw)
    return Case(target, [ints(draw, b, h), ints(draw, h, o)], ("$0", "$1"))


@example("aten.bmm.default")
def bmm(draw: Draw, target: str) -> Case:
    e, b, h, o = (size(draw) for _ in range(4))
    return Case(target, [ints(draw, e, b, h), ints(draw, e, h, o)], ("$0", "$1"))


@example(
    "aten.sum.dim_IntList",
    "aten.amax.default",
    "aten.amin.default",
    "aten.logsumexp.default",
    "aten.any.dims",
    "aten.all.dims",
    "aten.var.correction",
    "aten.var_mean.correction",
    "aten.mean.dim",
)
def reduce_dims(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    some = draw(st.sets(st.integers(-len(shape), -1), min_size=1))
    name = target.split(".")[1]
    x = bools(draw, *shape) if name in ("any", "all") else ints(draw, *shape)
    keep = draw(st.booleans())
    if "var" in name:
        return Case(target, [x], ("$0", sorted(some), {"kw": {"correction": 0, "keepdim": keep}}), exact=False)
    args = ("$0", sorted(some), keep) if draw(st.booleans()) else ("$0", sorted(some))
    return Case(target, [x], args, exact=name not in ("logsumexp", "mean"))


@example(*(f"aten.{n}.default" for n in ("sum", "mean", "max", "min", "any", "all", "prod")))
def reduce_all(draw: Draw, target: str) -> Case:
    x = ints(draw, *sizes(draw, 0))
    return Case(
        target, [x.bool() if target.split(".")[1] in ("any", "all") else x], ("$0",), exact="mean" not in target
    )


@example(
    "aten.any.dim",
    "aten.all.dim",
    "aten.prod.dim_int",
    "aten.max.dim",
    "aten.min.dim",
    "aten.argmax.default",
    "aten.argmin.default",
    "aten.linalg_vector_norm.default",
)
def reduce_one(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    x = bools(draw, *shape) if target.split(".")[1] in ("any", "all") else ints(draw, *shape)
    if "norm" in target:
        return Case(target, [x], ("$0", 2, [dim], draw(st.booleans())), exact=False)
    return Case(target, [x], ("$0", dim, draw(st.booleans())))


@example(*(f"aten.{n}.default" for n in ("cumsum", "cumprod", "logcumsumexp", "sort", "argsort")))
def along(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    x = ints(draw, *shape) + (reals(draw, *shape) / 100 if "sort" in target else 0)
    return Case(target, [x], ("$0", draw(st.integers(-len(shape), len(shape) - 1))), exact="exp" not in target)


@example("aten.topk.default")
def topk(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    return Case(target, [reals(draw, *shape)], ("$0", draw(st.integers(1, shape[dim])), dim))


@example("aten.histc.default")
def histc(draw: Draw, target: str) -> Case:
    x = ints(draw, *sizes(draw))
    return Case(target, [x], ("$0", 4, *((-4, 4) if draw(st.booleans()) else ())))
