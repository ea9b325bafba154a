"""Attention and the ops with random bits: their backward ops name the forward op whose draw they repeat."""

from __future__ import annotations

from superscaler.trace.draft import Builder, Value
from superscaler.trace.library import NAMESPACE
from superscaler.trace.lowering.call import Call, Lowering, Result

_PLACE = ["#key", "#seed", "#region"]


def _arguments(c: Call, *names: str) -> list[object]:
    """The named tensors, the mask if there is one, and what attention needs to know of its part."""
    mask = [] if c["mask"] is None else [c["mask"]]
    return [*(c[name] for name in names), *mask, bool(c["causal"]), c["scale"], c["dropout"], *_PLACE]


def _attention(b: Builder, c: Call) -> Result:
    likes = [like for like in c.outs if like is not None]
    op = b.ops_of("superscaler.attention", _arguments(c, "query", "key", "value"), *likes)
    b.sites[b.scope, c["site"]] = op
    return op.outputs


def _backward(target: str) -> Lowering:
    def lower(b: Builder, c: Call) -> Result:
        likes = [like for like in c.outs if like is not None]
        args = _arguments(c, "grad", "query", "key", "value", "out", "lse")
        outputs = b.ops_of(target, args, *likes, twin=b.sites[b.scope, c["site"]]).outputs
        return outputs if len(likes) > 1 else outputs[0]

    return lower


def _dropout(b: Builder, c: Call) -> Result:
    x: Value = c["x"]
    out = b.op("superscaler.dropout", [x, c["p"], *_PLACE], c.out)
    assert out.op is not None
    b.sites[b.scope, c["site"]] = out.op
    return out


def _dropout_backward(b: Builder, c: Call) -> Result:
    return b.op("superscaler.dropout", [c["grad"], c["p"], *_PLACE], c.out, twin=b.sites[b.scope, c["site"]])


def _drawn(target: str) -> Lowering:
    return lambda b, c: b.op(target, ["#shape", c.out[1], *_PLACE], c.out)


LOWERINGS: dict[str, Lowering] = {
    f"{NAMESPACE}.attention.default": _attention,
    f"{NAMESPACE}.attention_backward.default": _backward("superscaler.attention_backward"),
    f"{NAMESPACE}.attention_mask_backward.default": _backward("superscaler.attention_mask_backward"),
    f"{NAMESPACE}.dropout.default": _dropout,
    f"{NAMESPACE}.dropout_backward.default": _dropout_backward,
    f"{NAMESPACE}.uniform.default": _drawn("superscaler.uniform"),
    f"{NAMESPACE}.normal.default": _drawn("superscaler.normal"),
}
