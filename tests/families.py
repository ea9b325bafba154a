"""Small models of every family, each with a batch: what exactness and coverage are shown on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superscaler.models import build

VOCAB = 61


@dataclass(frozen=True)
class Case:
    """A model with its call. ``loss``: from the output to the scalar loss; None: the output's own."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    loss: Callable[[Any], Tensor] | None = None


def transformers() -> Any:
    return pytest.importorskip("transformers")


def ignore_some(labels: Tensor) -> Tensor:
    """Labels ignored unevenly: the first sequence in part, the last of several wholly."""
    labels = labels.clone()
    labels[0, : labels.shape[1] // 3] = -100
    labels[1:][-1:] = -100
    return labels


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int, length: int) -> Tensor:
    """A mask of sequences of unequal lengths, all of at least one token."""
    lengths = torch.arange(batch) % 3
    return (torch.arange(length)[None] < (length - lengths)[:, None]).long()


def language(batch: int, length: int) -> dict[str, Tensor]:
    ids = tokens(batch, length)
    return {"input_ids": ids, "labels": ignore_some(ids)}


def bert(batch: int, length: int = 7) -> Case:
    config = transformers().BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    kwargs = {**language(batch, length), "attention_mask": padding(batch, length)}
    return Case(transformers().BertForMaskedLM(config), kwargs=kwargs)


def vit(batch: int, length: int = 5) -> Case:
    config = transformers().ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    pixels = torch.randn(batch, 3, 8, 8)
    return Case(
        transformers().ViTForImageClassification(config),
        kwargs={"pixel_values": pixels, "labels": torch.arange(batch) % length},
    )


def t5(batch: int, length: int = 7) -> Case:
    config = transformers().T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, relative_attention_num_buckets=8, use_cache=False,
    )  # fmt: skip
    kwargs = {
        "input_ids": tokens(batch, length),
        "attention_mask": padding(batch, length),
        "labels": ignore_some(tokens(batch, length - 2, seed=2)),
    }
    return Case(transformers().T5ForConditionalGeneration(config), kwargs=kwargs)


def swin(batch: int, length: int = 5) -> Case:
    config = transformers().SwinConfig(
        image_size=16, patch_size=2, num_channels=3, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4,
        drop_path_rate=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=length,
    )  # fmt: skip
    pixels = torch.randn(batch, 3, 16, 16)
    return Case(
        transformers().SwinForImageClassification(config),
        kwargs={"pixel_values": pixels, "labels": torch.arange(batch) % length},
    )


def qwen2(batch: int, length: int = 7) -> Case:
    config = transformers().Qwen2Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Case(transformers().Qwen2ForCausalLM(config), kwargs=language(batch, length))


def mixtral(batch: int, length: int = 7) -> Case:
    config = transformers().MixtralConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=16, use_cache=False, bos_token_id=0,
        eos_token_id=0, experts_implementation="eager",
    )  # fmt: skip
    return Case(transformers().MixtralForCausalLM(config), kwargs=language(batch, length))


class FoldLoss(nn.Module):
    """A trunk block of ESMFold with a loss on both of its results."""

    def __init__(self) -> None:
        super().__init__()
        esm = __import__("transformers.models.esm.modeling_esmfold", fromlist=["x"])
        config = __import__("transformers.models.esm.configuration_esm", fromlist=["x"]).TrunkConfig(
            sequence_state_dim=16, pairwise_state_dim=8, sequence_head_width=4, pairwise_head_width=4, dropout=0.0,
            num_blocks=1,
        )  # fmt: skip
        self.block = esm.EsmFoldTriangularSelfAttentionBlock(config)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.block.parameters():  # some start at zero: then half of the gradients would be zero
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)

    def forward(self, sequence: Tensor, pair: Tensor) -> Tensor:
        sequence, pair = self.block(sequence, pair)
        return (sequence**2).mean() + (pair**3).mean()


def esmfold(batch: int, length: int = 5) -> Case:
    transformers()
    return Case(FoldLoss(), (torch.randn(batch, length, 16), torch.randn(batch, length, length, 8)))


def gpt2(batch: int, length: int = 7) -> Case:
    config = transformers().GPT2Config(
        vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Case(transformers().GPT2LMHeadModel(config), kwargs=language(batch, length))


def llama(batch: int, length: int = 7) -> Case:
    config = transformers().LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Case(transformers().LlamaForCausalLM(config), kwargs=language(batch, length))


def ours(name: str, batch: int, **sizes: Any) -> Case:
    model, example = build(name, "tiny", **sizes)
    return Case(model, example(batch, None))


HUGGING_FACE: dict[str, Callable[[int], Case]] = {
    "bert": bert, "vit": vit, "t5": t5, "swin": swin, "qwen2": qwen2, "mixtral": mixtral, "esmfold": esmfold,
    "gpt2": gpt2, "llama": llama,
}  # fmt: skip
OURS: dict[str, Callable[[int], Case]] = {
    "our gpt": lambda batch: ours("gpt", batch),
    "our swin": lambda batch: ours("swin", batch, image=16, hidden=8),
    "our t5": lambda batch: ours("t5", batch, vocab=48, hidden=16, heads=4, head_size=4, ffn=24, context=7),
    "our alphafold2": lambda batch: ours(
        "alphafold2", batch, blocks=1, cycles=2, residues=5, sequences=3, extra_sequences=4
    ),
}
FAMILIES = {**HUGGING_FACE, **OURS}
LARGE = ("our alphafold2", "our swin", "swin")


def family(name: str, batch: int = 4) -> Case:
    """The small model called ``name``, with a batch; always the same one."""
    torch.manual_seed(0)
    return FAMILIES[name](batch)
