"""Attention and masks of ``transformers`` models while tracing: no mask is built where ``causal`` and padding say it.

Under export the library bakes a mask [b, 1, s, s] into every trace (6.4 GB for GPT-3 175B), searches position ids for
packed sequences, and makes a cache. A model's own "eager" attention is left as it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.errors import TraceError
from superscaler.trace import transformers_experts
from superscaler.trace.source import current_line, shown

NAME = "superscaler"
_UNSUPPORTED = ("softcap", "s_aux", "cache")


def prepare(model: nn.Module) -> None:
    """Switch a *copy* of a model to our attention, without caches and without its own recomputation."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
        config: Any = getattr(module, "config", None)
        if config is None or not hasattr(config, "_attn_implementation_internal"):
            continue
        if config._attn_implementation_internal not in (None, "eager") and _asks_the_registry(module):
            config._attn_implementation_internal = NAME
        if getattr(config, "_experts_implementation_internal", None) is not None:
            config._experts_implementation_internal = NAME
        if getattr(config, "use_cache", False):
            config.use_cache = False


def _asks_the_registry(module: nn.Module) -> bool:
    """Whether the model's code looks its attention up; what knows implementations by name would not know ours."""
    rooms = {cls.__module__ for cls in type(module).__mro__} - {"transformers.modeling_utils"}
    return any(hasattr(sys.modules.get(room), "ALL_ATTENTION_FUNCTIONS") for room in rooms)


@contextmanager
def installed(*, position_ids: bool) -> Generator[None]:
    """Our functions in the registries of transformers, if that is loaded. ``position_ids``: the user passes them."""
    if "transformers" not in sys.modules:
        yield
        return
    masking: Any = importlib.import_module("transformers.masking_utils")
    modeling: Any = importlib.import_module("transformers.modeling_utils")
    modeling.AttentionInterface.register(NAME, _attention)
    masking.AttentionMaskInterface.register(NAME, _mask)
    transformers_experts.register(NAME)
    base: Any = modeling.PreTrainedModel
    search, warn = masking.find_packed_sequence_indices, base.warn_if_padding_and_no_attention_mask
    masking.find_packed_sequence_indices = _refuse_packed if position_ids else lambda position_ids: None
    base.warn_if_padding_and_no_attention_mask = lambda self, input_ids, attention_mask: None  # it looks at values
    try:
        yield
    finally:
        masking.find_packed_sequence_indices, base.warn_if_padding_and_no_attention_mask = search, warn


def _refuse_packed(position_ids: Tensor) -> None:
    raise TraceError(
        "position ids as an input may pack several sequences into one row, which is not supported",
        f"at {shown(current_line())}",
        hint="leave position_ids out, or pass an attention_mask with them",
    )


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """None, or the padding alone as [b, 1, 1, t], where the pattern is plainly causal or full; else the whole mask."""
    masking: Any = importlib.import_module("transformers.masking_utils")
    padding = masking.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    local = local_size is not None and kv_length >= local_size
    causal = allow_is_causal_skip and q_length == kv_length and q_offset == 0
    if (causal or allow_is_bidirectional_skip) and not local:
        return None if padding is None else padding.to(torch.bool)[:, None, None, :]
    if mask_function is not None:
        kwargs["mask_function"] = mask_function
    return masking.sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        **kwargs,
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[b, h, s, d] -> [b, s, h, d], as the library's attention functions."""
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise TraceError(
                f"attention with {name} is not one op here",
                f"at {shown(current_line())}",
                hint='model.set_attn_implementation("eager")',
            )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and query.shape[2] > 1
    if attention_mask is not None and (attention_mask.shape[-2] > 1 or attention_mask.dtype != torch.bool):
        causal = False  # the whole mask, or one that the model has made itself; ours is of keys, true or false
    if position_bias is not None:
        attention_mask = _biased(position_bias, attention_mask)
    grouped = key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, causal, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return bias + mask
