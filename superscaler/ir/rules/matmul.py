"""Matrix products: split the batch, the outputs, or the contraction (which makes the result partial).

A grouped product multiplies stretches of rows by a matrix each (the tokens of each expert, sorted by expert). A part of
the experts leaves the others' rows zero, so a split over experts is a sum, as with an embedding's vocabulary.
"""

from __future__ import annotations

from superscaler.ir.rules.rule import Spec

_BOTH = ((0,), (1,))
RULES: dict[str, Spec] = {
    "aten.mm.default": Spec("b h, h o -> b o", linear=_BOTH),
    "aten.bmm.default": Spec("e b h, e h o -> e b o", linear=_BOTH),
    # ($0 rows, $1 matrices, $2 where each matrix's rows end, "#start:e")
    "superscaler.grouped_mm": Spec("b! h, e h o, n! -> b! o", linear=_BOTH, contiguous=("e",)),
    # ($0 rows, $1 gradient, $2 where each matrix's rows end, "#start:e", "#local:e")
    "superscaler.grouped_mm_backward_weight": Spec("b! h, b! o, n! -> e h o", linear=_BOTH, contiguous=("e",)),
}
