"""Swin Transformer, an image classifier: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows".

Presets ``swin-t`` to ``swin-l`` are the paper's (§3.3). ``coshard-*`` are the four sizes on which SuperScaler
(arXiv 2301.08984) evaluates co-shard: images of 1536, windows of 48, and (layers, hidden) of 32/512, 40/768, 48/1024
and 56/1536. Our reading of these: ``hidden`` is the width of the first stage, and the layers beyond 2, 2 and 2 lie in
the third stage, as in Swin-S to L. Heads are 32 wide, as in Swin, except in the largest: 48, so that the heads of each
stage part evenly into the 8 × 4 shards evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.models.config import require, require_divides, require_positive, require_probability
from superscaler.models.swin_weights import from_hf
from superscaler.models.windows import partition, relative_index, shift_mask, unpartition

__all__ = ["PRESETS", "Config", "Swin", "example_inputs", "from_hf"]

# What is added to the score of two tokens that the cyclic shift made neighbours; not -inf, as in the original weights.
APART = -100.0


@dataclass(frozen=True)
class Config:
    """Sizes of a :class:`Swin`.

    ``image`` and ``patch`` are sides in pixels, ``window`` one in patches; ``hidden`` is the width of the first stage,
    doubled by each next one; ``depths`` and ``heads`` are per stage; ``drop_path`` is the stochastic depth of the last
    layer.
    """

    image: int = 224
    patch: int = 4
    channels: int = 3
    classes: int = 1000
    hidden: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    expansion: int = 4
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("image", "patch", "channels", "classes", "hidden", "window")}
        require_positive("swin", expansion=self.expansion, **sizes)
        require_divides("swin", "patch", self.patch, "image", self.image)
        require(len(self.depths) > 0, "swin: depths is empty", hint="depths=2,2,6,2")
        stages = f"depths {self.depths} and heads {self.heads}"
        require(
            len(self.depths) == len(self.heads),
            f"swin: {stages} are of different length",
            hint=f"{len(self.depths)} heads: one number for each stage",
        )
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            require_positive(f"swin, stage {stage}", depth=depth, heads=heads)
            require_divides("swin", "heads", heads, f"the width of stage {stage},", self.hidden << stage)
        require_probability("swin", "dropout", self.dropout)
        require_probability("swin", "drop_path", self.drop_path)

    def drop_path_of(self, layer: int) -> float:
        """The stochastic depth of the layer with this number, counted through all stages: linear in it."""
        return self.drop_path * layer / max(1, sum(self.depths) - 1)


def _coshard(layers: int, hidden: int, heads: int) -> Config:
    depths = (2, 2, layers - 6, 2)
    return Config(image=1536, window=48, hidden=hidden, depths=depths, heads=(heads, 2 * heads, 4 * heads, 8 * heads))


PRESETS: dict[str, Config] = {
    "tiny": Config(image=32, classes=10, hidden=16, depths=(2, 2), heads=(2, 4), window=4),
    "digits": Config(image=8, patch=2, channels=1, classes=10, hidden=32, depths=(2, 2), heads=(2, 4), window=2),
    "swin-t": Config(),
    "swin-s": Config(depths=(2, 2, 18, 2)),
    "swin-b": Config(hidden=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "swin-l": Config(hidden=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
    "coshard-32": _coshard(32, 512, 16),
    "coshard-40": _coshard(40, 768, 24),
    "coshard-48": _coshard(48, 1024, 32),
    "coshard-56": _coshard(56, 1536, 32),
}


class WindowAttention(nn.Module):
    """Self-attention within windows: [batch, windows, window², hidden] -> the same.

    A bias is learned per relative position. The scores are explicit: fused kernels give the bias no gradient.
    """

    def __init__(self, hidden: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (hidden // heads) ** -0.5
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.project = nn.Linear(hidden, hidden)
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.dropout = nn.Dropout(dropout)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """``index`` [window², window²]: rows of the bias; ``mask`` [windows, window², window²]: pairs kept apart."""
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        scores = q @ k.transpose(-1, -2) * self.scale + F.embedding(index, self.bias).permute(2, 0, 1)
        if mask is not None:
            scores = scores + APART * mask[:, None].to(scores.dtype)
        mixed = self.dropout(scores.softmax(-1)) @ v
        return self.project(mixed.transpose(2, 3).flatten(3))


class Block(nn.Module):
    """Attention in (shifted) windows, then an MLP, each on the normed residual: [batch, height, width, hidden]."""

    def __init__(self, config: Config, stage: int, layer: int, window: int, shift: int) -> None:
        super().__init__()
        hidden = config.hidden << stage
        self.window = window
        self.shift = shift
        self.drop_path = config.drop_path_of(layer)
        self.norm1 = nn.LayerNorm(hidden)
        self.attention = WindowAttention(hidden, config.heads[stage], window, config.dropout)
        self.norm2 = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, config.expansion * hidden)
        self.down = nn.Linear(config.expansion * hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)

    def _keep(self, x: Tensor) -> Tensor:
        """``x`` of the samples that take this block, scaled to the same mean; zero for the others."""
        if not self.training or self.drop_path == 0.0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.drop_path)

    def _attend(self, x: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        resolution = x.shape[1]
        padding = -resolution % self.window
        if padding:
            x = F.pad(x, (0, 0, 0, padding, 0, padding))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self.attention(partition(x, self.window), index, mask)
        x = unpartition(x, self.window, resolution + padding)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :resolution, :resolution] if padding else x

    def forward(self, x: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """``index`` and ``mask`` as of :class:`WindowAttention`; the mask is None where windows are not shifted."""
        x = x + self._keep(self.dropout(self._attend(self.norm1(x), index, mask)))
        return x + self._keep(self.dropout(self.down(F.gelu(self.up(self.norm2(x))))))


class PatchMerging(nn.Module):
    """2 × 2 patches become one: [batch, height, width, hidden] -> [batch, height/2, width/2, 2·hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden)
        self.reduce = nn.Linear(4 * hidden, 2 * hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        odd = x.shape[1] % 2
        if odd:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        batch, height, width, hidden = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, hidden)
        # The four in column-major order, as the original weights have them.
        return self.reduce(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Stage(nn.Module):
    """Blocks at one resolution, every other one with shifted windows, then merging (but in the last stage)."""

    def __init__(self, config: Config, stage: int) -> None:
        super().__init__()
        first = sum(config.depths[:stage])
        resolution = config.image // config.patch
        for _ in range(stage):
            resolution = (resolution + 1) // 2
        self.window = min(config.window, resolution)
        self.shift = self.window // 2 if resolution > self.window else 0
        self.blocks = nn.ModuleList(
            Block(config, stage, first + i, self.window, self.shift * (i % 2)) for i in range(config.depths[stage])
        )
        last = stage == len(config.depths) - 1
        self.merge = nn.Identity() if last else PatchMerging(config.hidden << stage)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, height, width, hidden] -> [batch, ⌈height/2⌉, ⌈width/2⌉, 2·hidden]; in the last stage, the same."""
        index = relative_index(self.window, x.device)
        padded = x.shape[1] + -x.shape[1] % self.window
        mask = shift_mask(padded, self.window, self.shift, x.device) if self.shift else None
        for number, block in enumerate(self.blocks):
            x = block(x, index, mask if number % 2 else None)
        return self.merge(x)


class Swin(nn.Module):
    """The classifier with its loss. ``forward(images, labels)``: [batch, channels, image, image] floats, [batch] int64.

    Returns the mean cross-entropy: a scalar, in nats.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.channels * config.patch**2, config.hidden)
        self.embed_norm = nn.LayerNorm(config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))
        width = config.hidden << (len(config.depths) - 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.classes)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def patches(self, images: Tensor) -> Tensor:
        """The pixels of each patch: [batch, channels, image, image] -> [batch, height, width, channels · patch²]."""
        batch, channels, side, _ = images.shape
        patch = self.config.patch
        x = images.view(batch, channels, side // patch, patch, side // patch, patch)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the classes: [batch, channels, image, image] -> [batch, classes]."""
        x = self.dropout(self.embed_norm(self.embed(self.patches(images))))
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).flatten(1, 2).mean(1))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def example_inputs(config: Config, batch: int, seq: int | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images [batch, channels, image, image] and their labels [batch].

    Raises :class:`UsageError` when given a ``seq``.
    """
    require_positive("swin", batch=batch)
    require(seq is None, "swin reads images, not sequences: it has no seq", hint="set image (the side, in pixels)")
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, config.channels, config.image, config.image, generator=generator)
    return images, torch.randint(config.classes, (batch,), generator=generator)
