"""Unmodified models of transformers: loss and every gradient are those of plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trace_running import assert_same_as_torch

transformers = pytest.importorskip("transformers")


def language_batch(batch: int = 3, seq: int = 7, vocab: int = 64) -> dict[str, Any]:
    """Ids with their labels, unevenly ignored."""
    torch.manual_seed(1)
    ids = torch.randint(vocab, (batch, seq))
    labels = ids.clone()
    labels[0, 2:] = -100
    labels[2] = -100
    return {"input_ids": ids, "labels": labels}


def gpt2(**settings: Any) -> torch.nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=4, **settings)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return transformers.GPT2LMHeadModel(config)


def llama(**settings: Any) -> torch.nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, **settings,
        )
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_language_models(build: Any, tied: bool) -> None:
    torch.manual_seed(0)
    assert_same_as_torch(build(tie_word_embeddings=tied), kwargs=language_batch())
