"""Fusing again what normalisation took apart, where both halves ended up next to each other in one body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from superscaler.runtime.resolve import Line, Shape

ADDMM = "aten.addmm.default"


def fused(lines: Sequence[Line], shapes: Mapping[int, Shape], *, keep: frozenset[int]) -> list[Line]:
    """``mm`` followed by the addition of a bias becomes ``addmm``.

    ``shapes``: local shapes by local number. ``keep``: numbers that must exist afterwards. What is fused is one
    worker's local arithmetic, so it does not matter how the ops are split.
    """
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
