"""AlphaFold 2's trunk: Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold".

Input embedding, the stack over the extra alignment, the Evoformer, recycling, and the losses of the masked alignment
and of the distogram; template-free, and without the structure module (so recycling carries the first row and the pairs,
but no distances). Sections, algorithms and tables named here are those of the paper's supplement. ``published`` has the
sizes of its initial training, ``fine-tuning`` those of its fine-tuning (table 4).

Three deviations. One-hot features pass a linear layer there; here its rows are looked up, which is the same function.
Layers that it initialises to zero start small, so that every parameter has a gradient from the first step on. It draws
the number of cycles, 1 to 4, per step; here it is fixed: to 3, as SuperScaler (arXiv 2301.08984) has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.models.config import require, require_positive, require_probability
from superscaler.models.evoformer import Block, Widths

IGNORE = -100
# Amino acids and "unknown"; then, in an alignment, gap and masked.
RESIDUES = 21
TOKENS = 23
# Features of an alignment beside its letters (table 1): has deletion, deletion value; and, for the clusters of the main
# one, mean deletion and profile.
EXTRA_FEATURES = 2
CLUSTER_FEATURES = 3 + TOKENS


@dataclass(frozen=True)
class Config:
    """Sizes of an :class:`AlphaFold2`; in brackets the paper's names.

    ``residues`` is the crop [N_res], ``sequences`` [N_clust] and ``extra_sequences`` [N_extra_seq] the depth of the two
    alignments, ``cycles`` [N_cycle] the forwards per step, ``reach`` the largest distance along the chain told apart.
    """

    residues: int = 256
    sequences: int = 128
    extra_sequences: int = 1024
    blocks: int = 48
    extra_blocks: int = 4
    msa_width: int = 256
    extra_width: int = 64
    pair_width: int = 128
    msa_heads: int = 8
    msa_head_size: int = 32
    extra_head_size: int = 8
    pair_heads: int = 4
    pair_head_size: int = 32
    outer: int = 32
    triangle: int = 128
    expansion: int = 4
    bins: int = 64
    reach: int = 32
    cycles: int = 3
    dropout: float = 0.0
    pair_dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        require_positive("alphafold2", **sizes)
        require_probability("alphafold2", "dropout", self.dropout)
        require_probability("alphafold2", "pair_dropout", self.pair_dropout)

    def widths(self, *, extra: bool) -> Widths:
        """The sizes of a block of the Evoformer, or of the stack over the extra alignment."""
        return Widths(
            msa=self.extra_width if extra else self.msa_width,
            pair=self.pair_width,
            msa_heads=self.msa_heads,
            msa_head_size=self.extra_head_size if extra else self.msa_head_size,
            pair_heads=self.pair_heads,
            pair_head_size=self.pair_head_size,
            outer=self.outer,
            triangle=self.triangle,
            expansion=self.expansion,
        )


_SMALL = Config(
    residues=32, sequences=16, extra_sequences=32, blocks=4, extra_blocks=1, msa_width=64, extra_width=32,
    pair_width=32, msa_heads=4, msa_head_size=16, extra_head_size=8, pair_heads=2, pair_head_size=16, outer=16,
    triangle=32,
)  # fmt: skip

PRESETS: dict[str, Config] = {
    "tiny": replace(
        _SMALL, residues=12, sequences=6, extra_sequences=8, blocks=2, msa_width=16, extra_width=8, pair_width=16,
        msa_head_size=4, extra_head_size=2, pair_head_size=8, outer=4, triangle=16, expansion=2, reach=8,
    ),
    "small": _SMALL,
    "published": Config(),
    "fine-tuning": Config(residues=384, sequences=512, extra_sequences=5120),
}  # fmt: skip


class InputEmbedding(nn.Module):
    """Alignment and chain -> the first representations (algorithms 3 and 4, without templates)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.reach = config.reach
        self.left = nn.Embedding(RESIDUES, config.pair_width)
        self.right = nn.Embedding(RESIDUES, config.pair_width)
        self.relative = nn.Embedding(2 * config.reach + 1, config.pair_width)
        self.target = nn.Embedding(RESIDUES, config.msa_width)
        self.letters = nn.Embedding(TOKENS, config.msa_width)
        self.features = nn.Linear(CLUSTER_FEATURES, config.msa_width)
        self.extra_letters = nn.Embedding(TOKENS, config.extra_width)
        self.extra_features = nn.Linear(EXTRA_FEATURES, config.extra_width)

    def pair(self, target: Tensor, index: Tensor) -> Tensor:
        """[batch, residues] twice -> [batch, residues, residues, pair width]."""
        offset = (index[:, :, None] - index[:, None, :]).clamp(-self.reach, self.reach) + self.reach
        return self.left(target)[:, :, None] + self.right(target)[:, None] + self.relative(offset)

    def msa(self, target: Tensor, msa: Tensor, features: Tensor) -> Tensor:
        """Chain, alignment [batch, sequences, residues], features -> [batch, sequences, residues, msa width]."""
        return self.letters(msa) + self.features(features) + self.target(target)[:, None]

    def extra(self, msa: Tensor, features: Tensor) -> Tensor:
        """[batch, extra sequences, residues], features -> [batch, extra sequences, residues, extra width]."""
        return self.extra_letters(msa) + self.extra_features(features)


class Trunk(nn.Module):
    """One forward of recycling: what the last one left is added, then both stacks run (algorithms 2 and 32)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.recycle_row = nn.LayerNorm(config.msa_width)
        self.recycle_pair = nn.LayerNorm(config.pair_width)
        drops = config.dropout, config.pair_dropout
        extra, main = config.widths(extra=True), config.widths(extra=False)
        self.extra_blocks = nn.ModuleList(Block(extra, *drops, extra=True) for _ in range(config.extra_blocks))
        self.blocks = nn.ModuleList(Block(main, *drops, extra=False) for _ in range(config.blocks))

    def forward(self, msa: Tensor, extra: Tensor, pair: Tensor, row: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """``row`` [batch, residues, msa width] and ``last``, as ``pair``, come from the previous forward."""
        # Only the first sequence is recycled. A mask, not a slice, so that the sequences split like those of any op.
        first = (torch.arange(msa.shape[1], device=msa.device) == 0).to(msa.dtype)
        msa = msa + first[:, None, None] * self.recycle_row(row)[:, None]
        pair = pair + self.recycle_pair(last)
        for block in self.extra_blocks:
            extra, pair = block(extra, pair)
        for block in self.blocks:
            msa, pair = block(msa, pair)
        return msa, pair


class AlphaFold2(nn.Module):
    """The trunk with its two losses; see :meth:`forward`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = InputEmbedding(config)
        self.trunk = Trunk(config)
        self.masked_msa = nn.Linear(config.msa_width, TOKENS)
        self.distogram = nn.Linear(config.pair_width, config.bins)
        for path, module in self.named_modules():
            _initialise(path.rpartition(".")[2], module)

    def representations(
        self, target: Tensor, index: Tensor, msa: Tensor, features: Tensor, extra: Tensor, extra_features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the last forward leaves: [batch, sequences, residues, msa width], [batch, residues, residues, …]."""
        first, pair = self.embed.msa(target, msa, features), self.embed.pair(target, index)
        others = self.embed.extra(extra, extra_features)
        end, last = self.trunk(first, others, pair, first.new_zeros(first[:, 0].shape), torch.zeros_like(pair))
        for _ in range(self.config.cycles - 1):
            # Only the last forward has a gradient. Detached, not no_grad: export would make that a subgraph.
            end, last = self.trunk(first, others, pair, end[:, 0].detach(), last.detach())
        return end, last

    def forward(
        self,
        target: Tensor,
        index: Tensor,
        msa: Tensor,
        features: Tensor,
        extra: Tensor,
        extra_features: Tensor,
        true_msa: Tensor,
        distances: Tensor,
    ) -> Tensor:
        """0.3 × the distogram's cross-entropy + 2 × that of the masked alignment (§1.9): a scalar, in nats.

        target: [batch, residues] int64, the chain's residues, 0 to 20; index: [batch, residues] int64, their places.
        msa: [batch, sequences, residues] int64, tokens 0 to 22; features: [..., 26] floats, see ``CLUSTER_FEATURES``.
        extra: [batch, extra sequences, residues] int64; extra_features: [..., 2] floats.
        true_msa: as msa, the token where it was masked, else -100.
        distances: [batch, residues, residues] int64, the bin of the distance, -100 where unknown.
        """
        end, pair = self.representations(target, index, msa, features, extra, extra_features)
        letters = F.cross_entropy(self.masked_msa(end).flatten(0, 2), true_msa.flatten(), ignore_index=IGNORE)
        scores = self.distogram(pair + pair.transpose(1, 2))
        return 0.3 * F.cross_entropy(scores.flatten(0, 2), distances.flatten(), ignore_index=IGNORE) + 2.0 * letters


def _initialise(name: str, module: nn.Module) -> None:
    """§1.11.4, but for what is zero there; an embedding is a linear layer of one-hot features."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.num_embeddings**-0.5)
    if not isinstance(module, nn.Linear):
        return
    gain = {"up": 2**0.5, "project": 0.1, "down": 0.1, "masked_msa": 0.1, "distogram": 0.1}.get(name, 1.0)
    gate = name == "gate" or name.endswith("_gate")
    nn.init.normal_(module.weight, std=0.0 if gate else gain * module.in_features**-0.5)
    for part, bias in module.named_parameters(recurse=False):
        if part == "bias":
            nn.init.constant_(bias, 1.0 if gate else 0.0)


def example_inputs(config: Config, batch: int, seq: int | None = None, *, seed: int = 0) -> tuple[Tensor, ...]:
    """A random batch: what :meth:`AlphaFold2.forward` takes, 15 % of the alignment masked.

    Raises :class:`UsageError` when ``seq`` is another length than the crop.
    """
    require_positive("alphafold2", batch=batch)
    length, crop = config.residues, f"alphafold2: seq {seq} is not the crop of {config.residues} residues"
    require(seq is None or seq == length, crop, hint=f"residues={seq}")
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(RESIDUES, (batch, length), generator=generator)
    shape, extra_shape = (batch, config.sequences, length), (batch, config.extra_sequences, length)
    true = torch.randint(TOKENS - 1, shape, generator=generator)
    masked = torch.rand(shape, generator=generator) < 0.15
    return (
        target,
        torch.arange(length).repeat(batch, 1),
        torch.where(masked, TOKENS - 1, true),
        torch.rand((*shape, CLUSTER_FEATURES), generator=generator),
        torch.randint(TOKENS - 1, extra_shape, generator=generator),
        torch.rand((*extra_shape, EXTRA_FEATURES), generator=generator),
        torch.where(masked, true, IGNORE),
        torch.randint(config.bins, (batch, length, length), generator=generator),
    )
