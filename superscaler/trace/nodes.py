"""What one FX node says of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from superscaler.errors import TraceError
from superscaler.trace.draft import Like, dtype_name
from superscaler.trace.provenance import line_of
from superscaler.trace.source import shown


def schema_of(target: OpOverload) -> Any:
    """The arguments of an operator: their names and defaults."""
    return target._schema.arguments  # pyright: ignore[reportPrivateUsage]


def strides_of(node: fx.Node) -> tuple[int, ...]:
    """How the first argument lay in memory while it was traced."""
    first = node.args[0] if node.args else None
    value = first.meta.get("val") if isinstance(first, fx.Node) else None
    return tuple(value.stride()) if isinstance(value, torch.Tensor) else ()


def like_of(node: fx.Node, value: Any) -> Like:
    """Shape and dtype of a result. Raises :class:`TraceError` if either depends on data."""
    if not isinstance(value, torch.Tensor):
        raise refused(node, f"{node.target} gives a {type(value).__name__}, whose value is known only when it runs")
    sizes: list[Any] = list(value.shape)
    if not all(isinstance(size, int) for size in sizes):
        raise refused(node, f"{node.target} gives a tensor whose shape depends on data")
    return tuple(sizes), dtype_name(value.dtype)


def forward_only(node: fx.Node) -> bool:
    """Whether a node of a joint graph belongs to the forward."""
    return node.meta.get("partitioner_tag") != "is_backward"


def results_of(output: fx.Node) -> list[tuple[Any, fx.Node]]:
    """Descriptor and node of each result that there is, of a graph's output node."""
    (results,) = output.args
    pairs = zip(output.meta["desc"], results, strict=True)  # type: ignore[arg-type]
    return [(place, result) for place, result in pairs if isinstance(result, fx.Node)]


def refused(node: fx.Node, why: str, *, hint: str = "write this part with ops on whole tensors") -> TraceError:
    """The error for a node that a Graph cannot hold."""
    line = line_of(node)
    where = (f"at {shown(line)}",) if line else ()
    return TraceError("the model cannot be traced", *where, why, hint=hint)
