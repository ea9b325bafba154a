"""Randomness: counter-based, so a part draws exactly the numbers that it has in the whole."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.pointwise import broadcast_rule
from superscaler.ir.rules.rule import Rule, Shape, Spec


def dropout(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """``superscaler.dropout($0, p, "#key", "#seed", "#region")``; linear, since the mask depends on no value."""
    return broadcast_rule("random", ins, outs, ((0,),))


def drawn(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """``superscaler.uniform|normal("#shape", dtype, "#key", "#seed", "#region")``."""
    return broadcast_rule("random", ins, outs, ())


RULES: dict[str, Spec] = {
    "superscaler.dropout": Spec(dropout, ((0,),), shown="b s h -> b s h"),
    "superscaler.uniform": Spec(drawn, shown="-> b s h"),
    "superscaler.normal": Spec(drawn, shown="-> b s h"),
}
