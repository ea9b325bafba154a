"""Mixtures of experts of ``transformers`` while tracing: every expert sees every token, the router's weights decide.

The library's own forms sort tokens by expert, so their shapes depend on data. Computed densely, experts, tokens and
hidden dims all split; the result is the same sum with zeros in it, at (experts / experts per token) times the work.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor


def register(name: str) -> None:
    """Make ``name`` an implementation of experts, in versions of transformers that have such a registry."""
    try:
        moe: Any = importlib.import_module("transformers.integrations.moe")
        moe.ExpertsInterface.register(name, _dense)
    except (ImportError, AttributeError):
        return


def _dense(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """[t, h], [t, k], [t, k] -> [t, h]."""
    experts = torch.arange(self.num_experts, device=hidden_states.device)
    chosen = (top_k_index.unsqueeze(-1) == experts).to(top_k_weights.dtype)
    weights = (top_k_weights.unsqueeze(-1) * chosen).sum(1)  # [t, e]
    tokens = hidden_states.expand(self.num_experts, *hidden_states.shape)
    if self.has_gate:
        inner = self._apply_gate(_linear(self, "gate_up_proj", tokens))
    else:
        inner = self.act_fn(_linear(self, "up_proj", tokens))
    out = _linear(self, "down_proj", inner)  # [e, t, h]
    if self.has_post_expert_norm:
        out = self.post_expert_norm(out)
    return (out * weights.t().unsqueeze(-1)).sum(0).to(hidden_states.dtype)


def _linear(module: Any, name: str, x: Tensor) -> Tensor:
    weight: Tensor = getattr(module, name)
    out = torch.bmm(x, weight if module.is_transposed else weight.transpose(1, 2))
    return out + getattr(module, f"{name}_bias").unsqueeze(1) if module.has_bias else out
