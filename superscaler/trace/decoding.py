"""Decoders: a language model as a function of tokens and their positions, without labels and without a cache."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from superscaler.errors import UsageError
from superscaler.trace.tracing import Precision, Traced, trace

LOGITS = "logits"


def trace_decoder(model: nn.Module, *, batch: int, tokens: int, dtype: Precision = "f32") -> Traced:
    """The Graph from ``ids`` and ``positions`` ([batch, tokens] int64) to ``logits`` [batch, 1, vocab].

    The logits are those behind token ``keep``, a third input ([1] int64). ``model``: one of ``transformers`` whose
    forward takes ``input_ids``, ``position_ids`` and ``logits_to_keep``, or one with a method
    ``logits(ids, positions, keep)``. Raises :class:`UsageError` for any other.
    """
    ids = torch.zeros((batch, tokens), dtype=torch.int64)
    return trace(_decoder(model), (ids, ids.clone(), torch.zeros(1, dtype=torch.int64)), mode="eval", dtype=dtype)


def _decoder(model: nn.Module) -> nn.Module:
    """The same modules and parameters, under the same names, with a forward of ``(ids, positions, keep)``."""
    kind = type(model)
    ours = {"ids", "positions", "keep"} <= _parameters(getattr(model, "logits", None))
    if not ours and not {"input_ids", "position_ids", "logits_to_keep"} <= _parameters(model.forward):
        raise UsageError(
            f"{kind.__name__} does not say how it takes tokens at given positions",
            hint="forward(input_ids, position_ids, logits_to_keep, …), as in transformers, or a method "
            "logits(ids, positions, keep)",
        )

    def forward(self: Any, ids: Tensor, positions: Tensor, keep: Tensor) -> dict[str, Tensor]:
        if ours:
            return {LOGITS: kind.logits(self, ids, positions, keep)}  # type: ignore[operator, attr-defined]
        return {LOGITS: kind.forward(self, input_ids=ids, position_ids=positions, logits_to_keep=keep).logits}

    decoder = copy.copy(model)
    decoder.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return decoder


def _parameters(function: Any) -> set[str]:
    return set() if function is None else set(inspect.signature(function).parameters)
