"""Optimizer steps: pointwise over the parameter, with scalars (learning rate, step, clip coefficient) on the side."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import names, rule_text
from superscaler.ir.rules.pointwise import broadcast_rule
from superscaler.ir.rules.rule import Rule, Shape, Spec

Shapes = tuple[Shape, ...]


def update(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """All operands lie like the parameter, or are scalars."""
    return broadcast_rule("optimizer", ins, outs, ())


def sumsq(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.sumsq($0)``: the sum of squares of all elements."""
    return rule_text([names(len(ins[0]))], [[]])


RULES: dict[str, Spec] = {
    "superscaler.sgd": Spec(update, shown="b h, b h, , , b h -> b h, b h"),
    "superscaler.adamw": Spec(update, shown="b h, b h, b h, b h, , , -> b h, b h, b h"),
    "superscaler.sumsq": Spec(sumsq, shown="b h ->"),
    "superscaler.clip_coefficient": Spec(" -> "),
}
