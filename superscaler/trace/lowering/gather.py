"""Rows looked up in tables, and their gradients."""

from __future__ import annotations

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result


def _padding(index: int) -> int | None:
    return index if index >= 0 else None


def _embedding(b: Builder, c: Call) -> Result:
    args = [c["weight"], c["indices"], "#start:v", _padding(c["padding_idx"])]
    return b.op("superscaler.embedding", args, c.out)


def _embedding_backward(b: Builder, c: Call) -> Result:
    if c["scale_grad_by_freq"]:
        raise NotImplementedError("an embedding whose gradient is scaled by frequency depends on the whole batch")
    grad: Value = c["grad_output"]
    args = [grad, c["indices"], "#local:v", "#start:v", _padding(c["padding_idx"])]
    return b.op("superscaler.embedding_backward", args, c.out)


LOWERINGS: dict[str, Lowering] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_dense_backward.default": _embedding_backward,
}
