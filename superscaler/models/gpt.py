"""GPT, a decoder-only transformer language model: Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners".

Layer norm before each block, learned positions, GELU. Presets follow GPT-2's four sizes and table 2.1 of Brown et al.
2020, "Language Models are Few-Shot Learners", with dense attention in every layer (that paper: every other one sparse).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.models.config import require, require_divides, require_positive, require_probability

IGNORE = -100


@dataclass(frozen=True)
class Config:
    """Sizes of a :class:`GPT`. ``ffn=None`` is 4 × ``hidden``; ``tied`` shares the embedding with the head."""

    vocab: int = 50257
    context: int = 1024
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    ffn: int | None = None
    dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        require_positive(
            "gpt", vocab=self.vocab, context=self.context, layers=self.layers, hidden=self.hidden, heads=self.heads
        )
        require_positive("gpt", ffn=self.ffn_width)
        require_divides("gpt", "heads", self.heads, "hidden", self.hidden)
        require_probability("gpt", "dropout", self.dropout)

    @property
    def ffn_width(self) -> int:
        """The hidden width of the MLP."""
        return 4 * self.hidden if self.ffn is None else self.ffn


def _gpt3(layers: int, hidden: int, heads: int) -> Config:
    return Config(context=2048, layers=layers, hidden=hidden, heads=heads)


# Two rows of the paper's table contradict themselves; the parameter counts it gives decide. XL: 24 heads of 128 are not
# 2048 wide, 16 are. 13B: 40 heads of 128 are 5120 wide, not 5140.
PRESETS: dict[str, Config] = {
    "tiny": Config(vocab=256, context=32, layers=2, hidden=32, heads=4),
    "demo": Config(vocab=256, context=128, layers=4, hidden=256, heads=8),
    "gpt2-small": Config(layers=12, hidden=768, heads=12),
    "gpt2-medium": Config(layers=24, hidden=1024, heads=16),
    "gpt2-large": Config(layers=36, hidden=1280, heads=20),
    "gpt2-xl": Config(layers=48, hidden=1600, heads=25),
    "gpt3-small": _gpt3(12, 768, 12),
    "gpt3-medium": _gpt3(24, 1024, 16),
    "gpt3-large": _gpt3(24, 1536, 16),
    "gpt3-xl": _gpt3(24, 2048, 16),
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12288, 96),
}


class Attention(nn.Module):
    """Causal multi-head self-attention: [batch, seq, hidden] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.project = nn.Linear(config.hidden, config.hidden)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.project(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between: [batch, seq, hidden] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """One layer: attention, then MLP, each on the normed residual: [batch, seq, hidden] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """The language model with its loss. ``forward(ids, labels)`` takes two [batch, seq] integer tensors.

    ``labels[b, s]`` is the token that follows ``ids[b, s]`` (already shifted), or -100 where the loss ignores it.
    Returns the mean cross-entropy over the labels that count: a scalar, in nats.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.positions = nn.Embedding(config.context, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("project.weight", "down.weight")):
                # A residual stream of 2 × layers terms keeps its variance at initialisation (Radford et al., §2.3).
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.layers))
        if config.tied:
            self.head.weight = self.embedding.weight

    def logits(self, ids: Tensor, positions: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Scores of the next token: [batch, seq] -> [batch, seq, vocab].

        ``positions``: of the tokens; 0, 1, … by default. ``keep``: the indices of those whose scores are asked for.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.embedding(ids) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x if keep is None else x[:, keep]))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    for name, bias in module.named_parameters(recurse=False):
        if name == "bias":
            nn.init.zeros_(bias)


def example_inputs(config: Config, batch: int, seq: int | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random batch ``(ids, labels)``, each [batch, seq] int64; ``seq`` is the whole context by default.

    Raises :class:`UsageError` when ``seq`` exceeds the context.
    """
    length = config.context if seq is None else seq
    require_positive("gpt", batch=batch, seq=length)
    require(length <= config.context, f"gpt: seq {length} exceeds context {config.context}", hint=f"context={length}")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.vocab, (batch, length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
