"""Where an FX node comes from: phase, module, function and the user's source line.

The interception annotates what the forward runs; a backward node finds its forward node by the number that autograd
gives both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from superscaler.trace.draft import Origin

# The attribute under which the entry module (see ``entry``) holds the user's model.
ROOT = "model"
# Names of annotations.
LINE, MODULE, FUNCTION = "superscaler_line", "superscaler_module", "superscaler_function"
_FUNCTIONS = {"scaled_dot_product_attention": "attention", "multi_head_attention_forward": "attention"}


def annotation(line: str, module: str, function: str) -> dict[str, str]:
    """What a node made now is to be annotated with."""
    name = function.strip("_")
    return {LINE: line, MODULE: module, FUNCTION: _FUNCTIONS.get(name, name)}


def line_of(node: fx.Node) -> str:
    """The user's ``file:line``, if it is known: of a backward node, its forward's."""
    if node.meta.get("partitioner_tag") == "is_backward":
        same = (n for n in node.graph.nodes if n.meta.get("seq_nr") == node.meta.get("seq_nr"))
        node = next((n for n in same if n.meta.get("partitioner_tag") != "is_backward"), node)
    return (node.meta.get("custom") or {}).get(LINE, "")


class Provenance:
    """Origins of nodes, in graph order. ``path`` and ``scope``: the module that a graph is of, and a number for it."""

    def __init__(self, path: str = "", scope: int | None = None) -> None:
        self._path = path
        self._scope = scope
        self._forward: dict[int, Origin] = {}

    def origin(self, node: fx.Node) -> Origin:
        """The origin of ``node``. Those of accumulation adds are incomplete: their terms decide."""
        meta, seq = node.meta, node.meta.get("seq_nr")
        if meta.get("partitioner_tag") == "is_backward":
            return self._backward(meta)
        told: Mapping[str, Any] = meta.get("custom") or {}
        module = ".".join(part for part in (self._path, told.get(MODULE, "")) if part)
        number = None if seq is None else (self._scope, seq)
        found = Origin("forward", module, told.get(FUNCTION, ""), told.get(LINE, ""), number)
        if seq is not None:
            self._forward.setdefault(seq, found)
        return found

    def _backward(self, meta: Mapping[str, Any]) -> Origin:
        accumulates = bool(meta.get("is_gradient_acc", False))
        twin = self._forward.get(meta.get("seq_nr", -1))
        if accumulates or twin is None:
            return Origin("backward", self._path, accumulates=accumulates)
        return Origin("backward", twin.module, twin.function, twin.source, twin.seq)


def strip_root(path: str) -> str:
    """``model.layers.0`` -> ``layers.0``: a path as the user's model has it."""
    return path.removeprefix(ROOT).removeprefix(".")
