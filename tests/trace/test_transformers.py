"""Unmodified models of transformers: loss and every gradient are those of plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trace_running import assert_same_as_torch, run

from superscaler.errors import TraceError
from superscaler.trace import trace
from superscaler.trace.promote import Float64Mode
from tests.cases import slow

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
TEXT = {**SMALL, "max_position_embeddings": 16}
GROUPED = {**TEXT, "hidden_size": 32, "num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGE = {"image_size": 32, "num_labels": 5, "hidden_dropout_prob": 0.0}


def language_batch(batch: int = 3, seq: int = 7, *, padded: bool = False) -> dict[str, Tensor]:
    """Ids with their labels, unevenly ignored."""
    torch.manual_seed(1)
    ids = torch.randint(64, (batch, seq))
    labels = ids.clone()
    labels[0, 2:] = -100
    labels[2] = -100
    found = {"input_ids": ids, "labels": labels}
    if padded:
        found["attention_mask"] = (torch.arange(seq) < torch.tensor([[7], [5], [6]])).long()
    return found


def image_batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([1, 3])}


def gpt2(**settings: Any) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=4, **settings)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return transformers.GPT2LMHeadModel(config)


def llama(**settings: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **settings))


def qwen2(**settings: Any) -> nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED, **settings))


def mixtral() -> nn.Module:
    # "eager" so that plain torch can run it in float64; the trace computes experts densely whatever this says.
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4, experts_implementation="eager")
    return transformers.MixtralForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT, **NO_DROPOUT))


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL_IMAGE, patch_size=8))


SMALL_IMAGE = {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, **IMAGE, "attention_probs_dropout_prob": 0.0}


def swin() -> nn.Module:
    config = transformers.SwinConfig(
        **IMAGE, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.0
    )
    return transformers.SwinForImageClassification(config)


class Trunk(nn.Module):
    """A block of ESMFold's trunk with a loss."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.models.esm.configuration_esm import TrunkConfig
        from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

        config = TrunkConfig(
            sequence_state_dim=32, pairwise_state_dim=16, sequence_head_width=8, pairwise_head_width=8, dropout=0.0
        )
        self.block = EsmFoldTriangularSelfAttentionBlock(config)
        for parameter in self.parameters():  # several are zero at first, which would hide their gradients
            nn.init.normal_(parameter, std=0.1)

    def forward(self, sequence: Tensor, pair: Tensor) -> Tensor:
        sequence, pair = self.block(sequence, pair)
        return sequence.square().mean() + pair.square().mean()


@pytest.mark.parametrize("tied", [True, slow(False)])
@pytest.mark.parametrize("build", [gpt2, llama, qwen2])
def test_language_models(build: Any, tied: bool) -> None:
    torch.manual_seed(0)
    traced = assert_same_as_torch(build(tie_word_embeddings=tied), kwargs=language_batch())
    attentions = [op for op in traced.graph.ops if op.target == "superscaler.attention"]
    assert [len(op.inputs) for op in attentions] == [3, 3], "no mask is an input of causal attention"


@pytest.mark.parametrize("build", [gpt2, llama, bert, t5])
def test_padding_is_a_mask_over_keys_only(build: Any) -> None:
    torch.manual_seed(0)
    traced = assert_same_as_torch(build(), kwargs=language_batch(padded=True))
    for op in traced.graph.ops:
        if op.target == "superscaler.attention" and build is not t5:
            assert traced.graph.tensor[op.inputs[3]].shape == (3, 1, 1, 7)


def test_a_warning_that_looks_for_padding_is_left_out() -> None:
    torch.manual_seed(0)
    assert_same_as_torch(gpt2(pad_token_id=0), kwargs=language_batch())


@pytest.mark.parametrize("build", [slow(gpt2), llama, slow(bert), t5])
def test_evaluation(build: Any) -> None:
    torch.manual_seed(0)
    model, batch = build(), language_batch(padded=True)
    traced = trace(model, (), batch, mode="eval", dtype="f64")
    values = run(traced.graph, traced.values(model), [batch[name] for name in traced.graph.inputs])
    with Float64Mode():
        expected = model.double().eval()(**batch)
    for name in ("loss", "logits"):
        torch.testing.assert_close(values[traced.graph.outputs[name]], expected[name])


def test_a_sliding_window_needs_a_mask() -> None:
    config = transformers.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=3, max_window_layers=1)
    torch.manual_seed(0)
    traced = assert_same_as_torch(transformers.Qwen2ForCausalLM(config), kwargs=language_batch())
    assert [len(op.inputs) for op in traced.graph.ops if op.target == "superscaler.attention"] == [3, 4]


def test_a_mask_that_the_model_makes_itself_is_the_whole_mask() -> None:
    torch.manual_seed(0)
    config = transformers.LayoutLMConfig(**TEXT, **NO_DROPOUT)
    assert_same_as_torch(transformers.LayoutLMForMaskedLM(config), kwargs=language_batch())


def test_a_model_that_knows_attention_by_name_keeps_its_own() -> None:
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=64, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, alibi=True
    )
    assert_same_as_torch(transformers.FalconForCausalLM(config), kwargs=language_batch())


def test_eager_attention_stays_in_parts() -> None:
    torch.manual_seed(0)
    traced = assert_same_as_torch(gpt2(attn_implementation="eager"), kwargs=language_batch())
    assert not any(op.target == "superscaler.attention" for op in traced.graph.ops)


def test_mixture_of_experts() -> None:
    torch.manual_seed(0)
    assert_same_as_torch(mixtral(), kwargs=language_batch())


@pytest.mark.parametrize("build", [vit, swin])
def test_image_models(build: Any) -> None:
    torch.manual_seed(0)
    assert_same_as_torch(build(), kwargs=image_batch())


def test_protein_trunk() -> None:
    torch.manual_seed(0)
    assert_same_as_torch(Trunk(), (torch.randn(2, 6, 32), torch.randn(2, 6, 6, 16)))


def test_the_model_is_left_as_it_was() -> None:
    model = llama().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = model.config.to_dict()
    trace(model, (), language_batch(), mode="eval", dtype="f64")
    assert model.training
    assert model.config.to_dict() == settings
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


def test_positions_that_may_be_packed_are_refused() -> None:
    positions = torch.arange(7).expand(3, 7)
    with pytest.raises(TraceError, match="pack several sequences"):
        trace(llama(), (), {**language_batch(), "position_ids": positions})
