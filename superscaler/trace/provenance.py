"""Where an FX node comes from: phase, module, function and the user's source line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from superscaler.trace.draft import Origin
from superscaler.trace.source import line_of_node

# The attribute under which the entry module (see ``entry``) holds the user's model.
ROOT = "model"
_FUNCTIONS = {"scaled_dot_product_attention": "attention", "multi_head_attention_forward": "attention"}


class Provenance:
    """Origins of nodes, in graph order: a backward node takes what it lacks from the forward node of its number."""

    def __init__(self) -> None:
        self._forward: dict[int, Origin] = {}

    def origin(self, node: fx.Node) -> Origin:
        """The origin of ``node``. Those of accumulation adds are incomplete: their terms decide."""
        meta = node.meta
        if meta.get("partitioner_tag") == "is_backward":
            return self._backward(meta)
        found = Origin("forward", _module(meta.get("nn_module_stack")), _function(meta), line_of_node(meta))
        seq = meta.get("seq_nr")
        if seq is not None:
            found = Origin(found.phase, found.module, found.function, found.source, seq)
            self._forward.setdefault(seq, found)
        return found

    def _backward(self, meta: Mapping[str, Any]) -> Origin:
        stack = meta.get("fwd_nn_module_stack") or meta.get("nn_module_stack")
        accumulates = bool(meta.get("is_gradient_acc", False))
        twin = self._forward.get(meta.get("seq_nr", -1))
        if accumulates or twin is None:
            return Origin("backward", _module(stack), accumulates=accumulates)
        return Origin("backward", twin.module, twin.function, twin.source, twin.seq)


def _module(stack: Mapping[str, tuple[str, Any]] | None) -> str:
    if not stack:
        return ""
    path = list(stack.values())[-1][0].split("@")[0]
    return strip_root(path)


def strip_root(path: str) -> str:
    """``model.layers.0`` -> ``layers.0``: a path as the user's model has it."""
    return path.removeprefix(ROOT).removeprefix(".")


def _function(meta: Mapping[str, Any]) -> str:
    kind = meta.get("torch_fn")
    if not kind:
        return ""
    name = str(kind[1]).rsplit(".", 1)[-1].strip("_")
    return _FUNCTIONS.get(name, name)
