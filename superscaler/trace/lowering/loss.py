"""Cross-entropy in the parts that split exactly: log-sum-exp, the picked logits, their sum, the count of labels."""

from __future__ import annotations

from superscaler.trace.draft import Builder, Value
from superscaler.trace.library import NAMESPACE
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.pointwise import binary, cast


def _statistics(b: Builder, c: Call) -> tuple[Value, Value]:
    """Log-sum-exp and the logit of each label, both [t]."""
    logits, labels, like = c["logits"], c["labels"], c.outs[1]
    assert like is not None
    lse = b.op("superscaler.logsumexp", [logits], like)
    assert lse.op is not None
    b.sites["nll", id(logits), id(labels)] = lse.op
    return lse, b.op("superscaler.pick", [logits, labels, "#start:v"], (labels.shape, logits.dtype))


def _nll_sum(b: Builder, c: Call) -> Result:
    lse, picked = _statistics(b, c)
    assert c.outs[0] is not None
    return b.op("superscaler.nll", [lse, picked, c["labels"], c["ignore_index"]], c.outs[0]), lse


def _nll_each(b: Builder, c: Call) -> Result:
    lse, picked = _statistics(b, c)
    labels: Value = c["labels"]
    each = binary(b, "sub", lse, cast(b, picked, lse.dtype), (lse.shape, lse.dtype))
    ignored = b.op("aten.eq.Scalar", [labels, c["ignore_index"]], (labels.shape, "bool"))
    return b.op("aten.masked_fill.Scalar", [each, ignored, 0.0], (lse.shape, lse.dtype)), lse


def _count_valid(b: Builder, c: Call) -> Result:
    return b.op("superscaler.count_valid", [c["labels"], c["ignore_index"], c.out[1]], c.out)


def _nll_backward(b: Builder, c: Call) -> Result:
    grad, logits, labels, lse = (c[name] for name in ("grad", "logits", "labels", "lse"))
    twin = b.sites.get(("nll", id(logits), id(labels)))
    args = [grad, logits, labels, lse, "#start:v", c["ignore_index"]]
    return b.op("superscaler.cross_entropy_backward", args, (logits.shape, logits.dtype), twin=twin)


LOWERINGS: dict[str, Lowering] = {
    f"{NAMESPACE}.nll_sum.default": _nll_sum,
    f"{NAMESPACE}.nll_each.default": _nll_each,
    f"{NAMESPACE}.count_valid.default": _count_valid,
    f"{NAMESPACE}.nll_backward.default": _nll_backward,
}
