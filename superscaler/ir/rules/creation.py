"""Tensors made from nothing: each part makes its own piece."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import names, rule_text
from superscaler.ir.rules.rule import Shape, Spec


def full(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> str:
    """``superscaler.full("#shape", value, dtype)``."""
    return rule_text([], [names(len(outs[0]))])


RULES: dict[str, Spec] = {
    "superscaler.full": Spec(full, shown="-> b s h"),
    "superscaler.arange": Spec("-> n", contiguous=("n",)),
}
