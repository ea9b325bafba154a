"""Normalisation over the last dims, and softmax: what is normalised over stays whole, everything else can be split."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import arg, input_of, marked, names, positional, rule_text
from superscaler.ir.rules.rule import Builder, Shape, Spec

Shapes = tuple[Shape, ...]


def _normalised(x: Shape, statistics: Shape) -> list[str]:
    """Dims of ``x``; those that the statistics (mean, 1/σ) have reduced are whole."""
    reduced = [i for i, (a, b) in enumerate(zip(x, statistics, strict=True)) if a != b]
    return marked(names(len(x)), reduced, "!")


def _statistics(dims: list[str]) -> list[str]:
    return ["" if name.endswith("!") else name for name in dims]


def _tail(dims: list[str], rank: int) -> list[str]:
    return dims[len(dims) - rank :]


def layer_norm(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.native_layer_norm.default($0 x, shape, $1 weight, $2 bias, eps)`` -> out, mean, 1/σ."""
    tail = len(arg(op, 1))
    dims = marked(names(len(ins[0])), range(len(ins[0]) - tail, len(ins[0])), "!")
    parameters = [_tail(dims, tail) for _ in ins[1:]]
    return rule_text([dims, *parameters], [dims, _statistics(dims), _statistics(dims)])


def rms_norm(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.rms_norm($0 x, [$1 weight], eps)`` -> out, 1/rms (over the last dim)."""
    dims = marked(names(len(ins[0])), [-1], "!")
    return rule_text([dims, *(_tail(dims, 1) for _ in ins[1:])], [dims, _statistics(dims)])


def backward_input(statistics: int) -> Builder:
    """The input gradient, from g, x, that many statistics, and the weight if there is one."""

    def build(op: Op, ins: Shapes, outs: Shapes) -> str:
        dims = _normalised(ins[1], ins[2])
        weight = [_tail(dims, len(shape)) for shape in ins[2 + statistics :]]
        return rule_text([dims, dims, *([_statistics(dims)] * statistics), *weight], [dims])

    return build


def backward_weight(statistics: int) -> Builder:
    """The weight gradient from g, x and the statistics: a sum over everything but the weight's own dims.

    A layer norm over more than the last dim gives ``"#shape"`` as its last argument.
    """

    def build(op: Op, ins: Shapes, outs: Shapes) -> str:
        dims = list(names(len(ins[1])))
        reduced = ["" if b == 1 else d for d, b in zip(dims, ins[2], strict=True)]
        reduced[len(dims) - len(outs[0]) :] = [""] * len(outs[0])
        return rule_text([dims, dims, *([reduced] * statistics)], [_tail(dims, len(outs[0]))])

    return build


def softmax(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten._softmax.default($0, dim, …)``; with two inputs, its gradient from g and the output."""
    dim = next(int(a) for a in positional(op) if input_of(a) is None)
    dims = marked(names(len(ins[0])), [dim] if ins[0] else [], "!")
    return rule_text([dims for _ in ins], [dims])


G = ((0,),)
_X = "b s h!"
RULES: dict[str, Spec] = {
    "aten.native_layer_norm.default": Spec(layer_norm, shown=f"{_X}, h!, h! -> {_X}, b s 1, b s 1"),
    "superscaler.layer_norm_backward_input": Spec(backward_input(2), G, shown=f"{_X}, {_X}, b s 1, b s 1, h! -> {_X}"),
    "superscaler.layer_norm_backward_weight": Spec(backward_weight(2), G, shown="b s h, b s h, b s 1, b s 1 -> h"),
    "superscaler.rms_norm": Spec(rms_norm, shown=f"{_X}, h! -> {_X}, b s 1"),
    "superscaler.rms_norm_backward_input": Spec(backward_input(1), G, shown=f"{_X}, {_X}, b s 1, h! -> {_X}"),
    "superscaler.rms_norm_backward_weight": Spec(backward_weight(1), G, shown="b s h, b s h, b s 1 -> h"),
    "aten._softmax.default": Spec(softmax, shown=f"{_X} -> {_X}"),
    "aten._log_softmax.default": Spec(softmax, shown=f"{_X} -> {_X}"),
    "aten._softmax_backward_data.default": Spec(softmax, G, shown=f"{_X}, {_X} -> {_X}"),
    "aten._log_softmax_backward_data.default": Spec(softmax, G, shown=f"{_X}, {_X} -> {_X}"),
}
