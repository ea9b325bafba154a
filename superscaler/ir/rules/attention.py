"""Attention over batch, heads and queries; keys stay whole (each query needs all of them).

With grouped heads ``h`` names the key-value heads and ``r`` the queries' heads of each: a split along either cuts
whole heads. Which queries a part holds, for the causal mask and for dropout, is read from its region.
"""

from __future__ import annotations

from superscaler.errors import SplitError
from superscaler.ir.graph import Op
from superscaler.ir.rules.rule import Shape, Spec

Shapes = tuple[Shape, ...]


def _mask(shape: Shape, q: Shape, heads: str, t: int) -> str:
    """The dims of a mask broadcast to batch × heads × queries × keys."""
    full = ((q[0], "b"), (q[1], heads), (q[2], "s"), (t, "t!"))[4 - len(shape) :]
    return " ".join(name if size == whole else "1" for size, (whole, name) in zip(shape, full, strict=True))


def _operands(op: Op, q: Shape, k: Shape) -> tuple[str, str, str, str]:
    """Heads, queries, keys and values as rule text."""
    if q[1] % max(k[1], 1):
        raise SplitError(
            f"{op.name}: {q[1]} query heads are no multiple of {k[1]} key heads",
            hint="a number of query heads that the key heads divide",
        )
    heads = "h" if q[1] == k[1] else "(h r)"
    return heads, f"b {heads} s d!", "b h t! d!", "b h t! e!"


def attention(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.attention(q, k, v, [mask], causal, scale, dropout_p, …)`` -> out, log-sum-exp of the scores."""
    heads, q, k, v = _operands(op, ins[0], ins[1])
    mask = f", {_mask(ins[3], ins[0], heads, ins[1][2])}" if len(ins) > 3 else ""
    return f"{q}, {k}, {v}{mask} -> b {heads} s e!, b {heads} s"


def attention_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.attention_backward(g, q, k, v, out, lse, [mask], …)`` -> dq, dk, dv."""
    heads, q, k, v = _operands(op, ins[1], ins[2])
    out = f"b {heads} s e!"
    mask = f", {_mask(ins[6], ins[1], heads, ins[2][2])}" if len(ins) > 6 else ""
    return f"{out}, {q}, {k}, {v}, {out}, b {heads} s{mask} -> {q}, {k}, {v}"


def attention_mask_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.attention_mask_backward(g, q, k, v, out, lse, mask, …)``: the gradient of an additive mask.

    Its region is the mask's, which says where the queries lie only if the mask has a row for each: a causal mask of
    one row keeps the queries whole, and dropout is refused.
    """
    causal, _, dropout = op.args[7:10]
    if dropout:
        raise SplitError(f"{op.name}: the gradient of an attention mask knows no dropout", hint="dropout of 0")
    left = attention_backward(op, ins, outs).split("->")[0]
    heads = "h" if ins[1][1] == ins[2][1] else "(h r)"
    text = f"{left}-> {_mask(outs[0], ins[1], heads, ins[2][2])}"
    rows = outs[0][-2] if len(outs[0]) > 1 else 1
    return text.replace(" s", " s!") if causal and rows != ins[1][2] else text


def cached_attention(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.cached_attention($0 q, $1 keys, $2 values, $3 start, scale)``: caches are t b h d."""
    if ins[0][1] % max(ins[1][2], 1):
        raise SplitError(
            f"{op.name}: {ins[0][1]} query heads are no multiple of {ins[1][2]} key heads",
            hint="a number of query heads that the key heads divide",
        )
    heads = "h" if ins[0][1] == ins[1][2] else "(h r)"
    return f"b {heads} s! d!, t! b h d!, t! b h e!, -> b {heads} s! e!"


_QKV = "b (h r) s d!, b h t! d!, b h t! e!"
RULES: dict[str, Spec] = {
    "superscaler.attention": Spec(attention, shown=f"{_QKV} -> b (h r) s e!, b (h r) s"),
    "superscaler.cache_append": Spec("t! b h d!, b h s! d!, -> t! b h d!"),
    "superscaler.cached_attention": Spec(
        cached_attention, shown="b (h r) s! d!, t! b h d!, t! b h e!, -> b (h r) s! e!"
    ),
    "superscaler.attention_backward": Spec(
        attention_backward, ((0,),), shown=f"b (h r) s e!, {_QKV}, b (h r) s e!, b (h r) s -> {_QKV}"
    ),
    "superscaler.attention_mask_backward": Spec(
        attention_mask_backward,
        ((0,),),
        shown=f"b (h r) s e!, {_QKV}, b (h r) s e!, b (h r) s, b (h r) s t! -> b (h r) s t!",
    ),
}
