"""Matrix products: split the batch, the outputs, or the contraction (which makes the result partial)."""

from __future__ import annotations

from superscaler.ir.rules.rule import Spec

RULES: dict[str, Spec] = {
    "aten.mm.default": Spec("b h, h o -> b o", linear=((0,), (1,))),
    "aten.bmm.default": Spec("e b h, e h o -> e b o", linear=((0,), (1,))),
}
