"""Cross-entropy as an exact sum: the vocabulary and the tokens can both be split.

``loss = nll(logsumexp(logits), pick(logits, labels), labels) / count_valid(labels)``. Over a split vocabulary the
log-sum-exp is partial of its own kind, and the picked logit a partial sum (zero where the label lies elsewhere).
"""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import rule_text
from superscaler.ir.rules.rule import Shape, Spec

Shapes = tuple[Shape, ...]


def _tokens(rank: int) -> list[str]:
    return ["t"] if rank == 1 else ["b", "t", *(f"d{i}" for i in range(2, rank))][:rank]


def logsumexp(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.logsumexp($0 logits)``, over the last dim."""
    t = _tokens(len(outs[0]))
    return rule_text([[*t, "v^logsumexp"]], [t])


def pick(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.pick($0 logits, $1 labels, "#start:v")``."""
    t = _tokens(len(ins[1]))
    return rule_text([[*t, "v"], t], [t])


def nll(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.nll($0 lse, $1 picked, $2 labels, ignore_index)``: the sum over tokens that are not ignored."""
    t = _tokens(len(ins[0]))
    return rule_text([t, t, t], [[]])


def count_valid(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.count_valid($0 labels, ignore_index, dtype)``."""
    return rule_text([_tokens(len(ins[0]))], [[]])


def cross_entropy_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.cross_entropy_backward($0 g, $1 logits, $2 labels, $3 lse, "#start:v", ignore_index)``."""
    t = _tokens(len(ins[2]))
    return rule_text([t if ins[0] else [], [*t, "v"], t, t], [[*t, "v"]])


RULES: dict[str, Spec] = {
    "superscaler.logsumexp": Spec(logsumexp, shown="t v^logsumexp -> t"),
    "superscaler.pick": Spec(pick, ((0,),), ("v",), shown="t v, t -> t"),
    "superscaler.nll": Spec(nll, ((0, 1),), shown="t, t, t ->"),
    "superscaler.count_valid": Spec(count_valid, shown="t ->"),
    "superscaler.cross_entropy_backward": Spec(cross_entropy_backward, ((0,),), ("v",), shown=", t v, t, t -> t v"),
}
