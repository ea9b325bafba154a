"""T5, an encoder-decoder transformer: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer".

``t5-*`` are that paper's sizes (§3.7). ``vocab-*`` are those on which SuperScaler (arXiv 2301.08984) evaluates the
interlaced pipeline: vocabularies of 512k, 1024k, 1536k and 2048k words with hidden widths of 2048, 3072, 4096 and 6144,
on 4, 8, 16 and 32 devices. Ours to choose were: 24 + 24 layers, as in T5-3B and T5-11B (32 + 32 in the largest, so that
they part evenly over its 32 devices), heads 128 wide as there, 4 × hidden between, and mBART's length of 1024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.models.config import require, require_positive, require_probability

IGNORE = -100
START = 0


@dataclass(frozen=True)
class Config:
    """Sizes of a :class:`T5`.

    ``layers`` are in the encoder, and as many in the decoder; ``context`` is the usual length of source and target;
    distances are told apart in ``buckets``, up to ``distance``; ``tied`` shares the embedding with the head.
    """

    vocab: int = 32128
    context: int = 512
    layers: int = 6
    hidden: int = 512
    heads: int = 8
    head_size: int = 64
    ffn: int = 2048
    buckets: int = 32
    distance: int = 128
    dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        sizes = ("vocab", "context", "layers", "hidden", "heads", "head_size", "ffn")
        require_positive("t5", **{name: getattr(self, name) for name in sizes})
        require(
            self.buckets >= 4 and self.buckets % 4 == 0,
            f"t5: buckets {self.buckets} is no multiple of 4",
            hint=f"buckets={max(4, self.buckets - self.buckets % 4)}",
        )
        far = f"t5: distance {self.distance} is within the {self.buckets // 2} distances that have their own bucket"
        require(self.distance > self.buckets // 2, far, hint=f"distance={4 * self.buckets}")
        require_probability("t5", "dropout", self.dropout)


def _vocabulary(thousands: int, hidden: int, layers: int = 24) -> Config:
    shape = Config(vocab=thousands * 1024, context=1024, layers=layers, hidden=hidden, ffn=4 * hidden)
    return replace(shape, heads=hidden // 128, head_size=128)


PRESETS: dict[str, Config] = {
    "tiny": Config(vocab=256, context=16, layers=2, hidden=32, heads=4, head_size=8, ffn=64, buckets=8, distance=16),
    "t5-small": Config(),
    "t5-base": Config(layers=12, hidden=768, heads=12, ffn=3072),
    "t5-large": Config(layers=24, hidden=1024, heads=16, ffn=4096),
    "t5-3b": Config(layers=24, hidden=1024, heads=32, head_size=128, ffn=16384),
    "t5-11b": Config(layers=24, hidden=1024, heads=128, head_size=128, ffn=65536),
    "vocab-512k": _vocabulary(512, 2048),
    "vocab-1024k": _vocabulary(1024, 3072),
    "vocab-1536k": _vocabulary(1536, 4096),
    "vocab-2m": _vocabulary(2048, 6144, layers=32),
}


def bucket_of(distance: Tensor, buckets: int, limit: int) -> Tensor:
    """The bucket of each distance >= 0, as int64 of the same shape (§2.1).

    The first half have one distance each; the others grow in equal ratios up to ``limit``; the last has all beyond.
    """
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1) / exact) / math.log(limit / exact)
    far = exact + (ratio * (buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


class PositionBias(nn.Module):
    """What attention adds for the offset of a key from its query: length -> [heads, length, length].

    Causal: -inf for keys that follow the query. Otherwise half of the buckets are for those.
    """

    def __init__(self, config: Config, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.distance = config.distance
        self.buckets = config.buckets
        self.weight = nn.Parameter(torch.empty(config.buckets, config.heads))

    def forward(self, length: int, device: torch.device) -> Tensor:
        place = torch.arange(length, device=device)
        offset = place - place[:, None]
        if self.causal:
            bucket = bucket_of(offset.abs(), self.buckets, self.distance)
            bias = F.embedding(bucket, self.weight).permute(2, 0, 1)
            return bias.masked_fill(offset > 0, -math.inf)
        sided = self.buckets // 2
        bucket = bucket_of(offset.abs(), sided, self.distance)
        return F.embedding(torch.where(offset > 0, bucket + sided, bucket), self.weight).permute(2, 0, 1)


class RMSNorm(nn.Module):
    """Scales the last dim to unit mean square: no mean is taken off, no bias added."""

    def __init__(self, hidden: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    """Multi-head attention without biases and without scaling: x [batch, q, hidden], memory [batch, k, hidden] -> as x.

    With a bias [heads, q, k] the scores are explicit: fused kernels give the bias no gradient.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config.heads * config.head_size
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.hidden, inner, bias=False)
        self.key = nn.Linear(config.hidden, inner, bias=False)
        self.value = nn.Linear(config.hidden, inner, bias=False)
        self.project = nn.Linear(inner, config.hidden, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = self._heads(self.query(x)), self._heads(self.key(memory)), self._heads(self.value(memory))
        dropout = self.dropout if self.training else 0.0
        if bias is None:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=1.0)
        else:
            weights = (q @ k.transpose(-1, -2) + bias).softmax(-1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
        return self.project(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a ReLU between, without biases: [batch, seq, hidden] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.hidden, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.relu(self.up(x))))


class Encoder(nn.Module):
    """One layer of the encoder: [batch, source, hidden] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.hidden)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``bias`` [heads, source, source] as :class:`PositionBias` gives it."""
        normed = self.norm1(x)
        x = x + self.dropout(self.attention(normed, normed, bias))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Decoder(nn.Module):
    """One layer of the decoder: x [batch, target, hidden], memory [batch, source, hidden] -> as x."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.hidden)
        self.cross = Attention(config)
        self.norm3 = RMSNorm(config.hidden)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """``bias`` [heads, target, target], causal; the attention over ``memory`` has none."""
        normed = self.norm1(x)
        x = x + self.dropout(self.attention(normed, normed, bias))
        x = x + self.dropout(self.cross(self.norm2(x), memory))
        return x + self.dropout(self.mlp(self.norm3(x)))


class T5(nn.Module):
    """The model with its loss. ``forward(source, target, labels)``: [batch, source], [batch, target] twice, all int64.

    ``target`` is ``labels`` shifted right behind a start token; labels of -100 do not count. Returns the mean
    cross-entropy over those that do: a scalar, in nats.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder_bias = PositionBias(config, causal=False)
        self.encoder = nn.ModuleList(Encoder(config) for _ in range(config.layers))
        self.encoder_norm = RMSNorm(config.hidden)
        self.decoder_bias = PositionBias(config, causal=True)
        self.decoder = nn.ModuleList(Decoder(config) for _ in range(config.layers))
        self.decoder_norm = RMSNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Weights such that unscaled attention and the tied head start with scores of unit variance."""
        config = self.config
        for name, weight in self.named_parameters():
            if name.endswith("query.weight"):
                nn.init.normal_(weight, std=(config.hidden * config.head_size) ** -0.5)
            elif name.endswith("_bias.weight"):
                nn.init.normal_(weight, std=config.hidden**-0.5)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=1.0 if name == "embedding.weight" else weight.shape[1] ** -0.5)
        if config.tied:
            self.head.weight = self.embedding.weight

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores of the next target token: [batch, source], [batch, target] -> [batch, target, vocab]."""
        memory = self.dropout(self.embedding(source))
        bias = self.encoder_bias(source.shape[1], source.device)
        for layer in self.encoder:
            memory = layer(memory, bias)
        memory = self.dropout(self.encoder_norm(memory))
        x = self.dropout(self.embedding(target))
        bias = self.decoder_bias(target.shape[1], target.device)
        for layer in self.decoder:
            x = layer(x, memory, bias)
        x = self.dropout(self.decoder_norm(x))
        # The embedding has unit variance: as a head it is scaled down.
        return self.head(x * self.config.hidden**-0.5 if self.config.tied else x)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(source, target).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def example_inputs(
    config: Config, batch: int, seq: int | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A random batch ``(source, target, labels)``, each [batch, seq] int64; ``seq`` is the ``context`` by default."""
    length = config.context if seq is None else seq
    require_positive("t5", batch=batch, seq=length)
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(config.vocab, (batch, length), generator=generator)
    labels = torch.randint(config.vocab, (batch, length), generator=generator)
    return source, F.pad(labels[:, :-1], (1, 0), value=START), labels
