"""Convolutions and pooling: batch, channels and groups can be split; the spatial dims stay whole.

``g`` names the groups, ``c`` and ``o`` the channels in and out of each. Groups can be split where the op is given their
number as ``"#local:g"``. A convolution with a bias keeps ``c`` whole: a split one would add the bias n times.
"""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import arg, input_of, marked, names, rule_text
from superscaler.ir.rules.rule import Builder, Rule, Shape, Spec, parse_rule

Shapes = tuple[Shape, ...]
_SPATIAL = (("z!", "y!", "x!"), ("i!", "j!", "k!"), ("r!", "p!", "q!"))  # of the input, the kernel and the output


def _operands(rank: int, g: str, transposed: bool, c: str = "c") -> tuple[str, str, str]:
    """Input, weight and output of a convolution over ``rank - 2`` spatial dims."""
    spatial = [" ".join(dims[5 - rank :]) for dims in _SPATIAL]
    weight = f"({g} {c}) o" if transposed else f"({g} o) {c}"
    return f"b ({g} {c}) {spatial[0]}", f"{weight} {spatial[1]}", f"b ({g} o) {spatial[2]}"


def _groups(op: Op, channels: int, weight: Shape, position: int) -> tuple[str, dict[str, int]]:
    """The name of the groups' dim and its size; whole unless the op asks for their local number."""
    per_group = weight[1]
    return ("g" if arg(op, position) == "#local:g" else "g!"), {"g": channels // per_group if per_group else 1}


def convolution(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``aten.convolution.default($0, $1 weight, bias|None, stride, padding, dilation, transposed, …, groups)``."""
    transposed = bool(arg(op, 6))
    g, sizes = _groups(op, (outs if transposed else ins)[0][1], ins[1], 8)
    biased = input_of(arg(op, 2)) is not None
    x, weight, out = _operands(len(ins[0]), g, transposed, "c!" if biased else "c")
    text = f"{x}, {weight}, ({g} o) -> {out}" if biased else f"{x}, {weight} -> {out}"
    linear = () if biased else ((0,), (1,))
    return parse_rule(text, ins, outs, family="convolution", sizes=sizes, linear=linear)


def backward_input(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``superscaler.convolution_backward_input($0 grad, $1 weight, "#shape", stride, …, groups)``."""
    transposed = bool(arg(op, 6))
    g, sizes = _groups(op, (ins if transposed else outs)[0][1], ins[1], 8)
    x, weight, out = _operands(len(ins[0]), g, transposed)
    text = f"{out}, {weight} -> {x}"
    return parse_rule(text, ins, outs, family="convolution", sizes=sizes, linear=((0,), (1,)))


def backward_weight(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``superscaler.convolution_backward_weight($0 grad, $1 input, "#shape", stride, …, groups)``."""
    transposed = bool(arg(op, 6))
    g, sizes = _groups(op, ins[0 if transposed else 1][1], outs[0], 8)
    x, weight, out = _operands(len(ins[0]), g, transposed)
    text = f"{out}, {x} -> {weight}"
    return parse_rule(text, ins, outs, family="convolution", sizes=sizes, linear=((0,), (1,)))


def spatial(outs: str) -> Builder:
    """Pooling and resizing: every operand has the same leading dims; the last two are whole.

    ``outs``: per output, ``x`` for dims of the (unpooled) input and ``p`` for the pooled ones.
    """

    def dims(shape: Shape, like: Shape, kind: str) -> list[str]:
        found = marked(names(len(shape)), [-1, -2], "!")
        return [name[:-1] + "_out!" if kind == "p" and name.endswith("!") else name for name in found]

    def build(op: Op, ins: Shapes, outputs: Shapes) -> str:
        left, right = outs.split(">")
        return rule_text(
            [dims(s, ins[0], kind) for s, kind in zip(ins, left, strict=True)],
            [dims(s, ins[0], kind) for s, kind in zip(outputs, right, strict=True)],
        )

    return build


G = ((0,),)
_BOTH = ((0,), (1,))
_IN, _OUT = "b h s! d!", "b h s_out! d_out!"
RULES: dict[str, Spec] = {
    "aten.convolution.default": Spec(convolution, _BOTH, shown="b (g c) y! x!, (g o) c j! k! -> b (g o) p! q!"),
    "superscaler.convolution_backward_input": Spec(
        backward_input, _BOTH, shown="b (g o) p! q!, (g o) c j! k! -> b (g c) y! x!"
    ),
    "superscaler.convolution_backward_weight": Spec(
        backward_weight, _BOTH, shown="b (g o) p! q!, b (g c) y! x! -> (g o) c j! k!"
    ),
    "aten.avg_pool2d.default": Spec(spatial("x>p"), G, shown=f"{_IN} -> {_OUT}"),
    "aten.avg_pool2d_backward.default": Spec(spatial("px>x"), G, shown=f"{_OUT}, {_IN} -> {_IN}"),
    "aten._adaptive_avg_pool2d.default": Spec(spatial("x>p"), G, shown=f"{_IN} -> {_OUT}"),
    "aten._adaptive_avg_pool2d_backward.default": Spec(spatial("px>x"), G, shown=f"{_OUT}, {_IN} -> {_IN}"),
    "aten.max_pool2d_with_indices.default": Spec(spatial("x>pp"), shown=f"{_IN} -> {_OUT}, {_OUT}"),
    "aten.max_pool2d_with_indices_backward.default": Spec(spatial("pxp>x"), G, shown=f"{_OUT}, {_IN}, {_OUT} -> {_IN}"),
    "aten.upsample_nearest2d.default": Spec(spatial("x>p"), G, shown=f"{_IN} -> {_OUT}"),
    "aten.upsample_bilinear2d.default": Spec(spatial("x>p"), G, shown=f"{_IN} -> {_OUT}"),
    "aten.upsample_bicubic2d.default": Spec(spatial("x>p"), G, shown=f"{_IN} -> {_OUT}"),
}
