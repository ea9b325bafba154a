"""Fusing again what normalisation took apart, where the pieces ended up next to each other in one body.

What is fused is one worker's local arithmetic on the same operands, so it does not matter how the ops are split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from superscaler.runtime.resolve import Line, Shape

ADDMM = "aten.addmm.default"
LAYER_NORM_BACKWARD = "aten.native_layer_norm_backward.default"


def fused(lines: Sequence[Line], shapes: Mapping[int, Shape], *, keep: frozenset[int]) -> list[Line]:
    """The lines with products and biases as ``addmm``, and the gradients of a layer norm as one kernel.

    ``shapes``: local shapes by local number. ``keep``: numbers that must exist afterwards.
    """
    plain = [_undrawn(line) for line in lines]
    return _layer_norms(_biased(plain, shapes, keep), shapes)


def _undrawn(line: Line) -> Line:
    """Attention without dropout draws nothing, so its code need not change from step to step."""
    if line.target.startswith("superscaler.attention") and len(line.args) > 3 and line.args[-4] == 0:
        return replace(line, args=(*line.args[:-3], 0, None, line.args[-1]))
    return line


# --- products with a bias ---------------------------------------------------------------------------------------------


def _biased(lines: Sequence[Line], shapes: Mapping[int, Shape], keep: frozenset[int]) -> list[Line]:
    reads = Counter(number for line in lines for number in line.ins)
    products = {line.outs[0]: line for line in lines if line.target == "aten.mm.default"}
    dropped: set[int] = set()
    merged: dict[int, Line] = {}
    for line in lines:
        found = _with_bias(line, products, shapes)
        if found is None or reads[found[0]] != 1 or found[0] in keep:
            continue
        product, bias = found
        mm = products[product]
        dropped.add(product)
        merged[line.outs[0]] = replace(
            line, target=ADDMM, args=("$0", "$1", "$2"), ins=(bias, *_operands(mm)), kwargs=()
        )
    return [merged.get(line.outs[0], line) for line in lines if line.outs[0] not in dropped]


def _operands(mm: Line) -> tuple[int, int]:
    return mm.ins[int(mm.args[0][1:])], mm.ins[int(mm.args[1][1:])]


def _with_bias(line: Line, products: Mapping[int, Line], shapes: Mapping[int, Shape]) -> tuple[int, int] | None:
    """(product, bias) if the line adds a bias to a matrix product."""
    if line.target != "aten.add.Tensor" or line.kwargs or line.args != ("$0", "$1") or len(line.ins) != 2:
        return None
    for product, bias in (line.ins, line.ins[::-1]):
        if product in products and product != bias:
            columns = shapes[product][1]
            if shapes.get(bias) in ((columns,), (1, columns)):
                return product, bias
    return None


# --- gradients of layer norms -----------------------------------------------------------------------------------------


def _layer_norms(lines: Sequence[Line], shapes: Mapping[int, Shape]) -> list[Line]:
    """The gradients of input and weight, and of the bias if it stands beside them, from one pass over the operands."""
    weights = {line.ins[:4]: line for line in lines if line.target == "superscaler.layer_norm_backward_weight"}
    sums = {(line.ins[0], line.shapes[0]): line for line in lines if _sums_leading(line, shapes)}
    merged: dict[int, Line] = {}
    dropped: set[int] = set()
    for line in lines:
        weight = weights.get(line.ins[:4])
        if line.target != "superscaler.layer_norm_backward_input" or weight is None or len(line.ins) != 5:
            continue
        bias = sums.get((line.ins[0], weight.shapes[0]))
        parts = [line, weight, *([bias] if bias is not None else [])]
        dropped.update(part.outs[0] for part in parts[1:])
        merged[line.outs[0]] = replace(
            line,
            target=LAYER_NORM_BACKWARD,
            args=("$0", "$1", weight.shapes[0], "$2", "$3", "$4", "$4", (True, True, bias is not None)),
            outs=tuple(part.outs[0] for part in parts),
            shapes=tuple(part.shapes[0] for part in parts),
        )
    return [merged.get(line.outs[0], line) for line in lines if line.outs[0] not in dropped]


def _sums_leading(line: Line, shapes: Mapping[int, Shape]) -> bool:
    """Whether a line sums over all leading dims of its operand, down to its own shape."""
    if line.target != "aten.sum.dim_IntList" or len(line.args) < 2 or line.kwargs or True in line.args[2:]:
        return False
    shape, dims = shapes.get(line.ins[0], ()), line.args[1]
    return (
        tuple(sorted(d % len(shape) for d in dims)) == tuple(range(len(shape) - len(line.shapes[0])))
        if shape
        else False
    )
