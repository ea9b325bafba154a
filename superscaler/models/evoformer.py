"""The Evoformer block: Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold", §1.6 and 1.7
of the supplement, whose algorithms are named here.

Two representations exchange information: the alignment's ``msa`` [batch, sequences, residues, msa width] and that of
pairs of residues, ``pair`` [batch, residues, residues, pair width]. Where attention has a bias its scores are explicit:
the bias has a gradient, which fused kernels do not give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Widths:
    """Sizes of one :class:`Block`: widths of the representations, and heads × head size of each attention."""

    msa: int
    pair: int
    msa_heads: int
    msa_head_size: int
    pair_heads: int
    pair_head_size: int
    outer: int
    triangle: int
    expansion: int


class SharedDropout(nn.Module):
    """Dropout that draws once for all places along ``dim`` (§1.11.6: rows or columns are dropped whole)."""

    def __init__(self, p: float, dim: int) -> None:
        super().__init__()
        self.p = p
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        shape = list(x.shape)
        shape[self.dim] = 1
        return x * F.dropout(x.new_ones(shape), self.p)


class GatedAttention(nn.Module):
    """Self-attention along the last but one dim, gated by its input: [batch, rows, length, width] -> the same.

    ``bias`` [batch, 1, heads, length, length] is added to the scores of every row.
    """

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_size**-0.5
        self.query = nn.Linear(width, heads * head_size, bias=False)
        self.key = nn.Linear(width, heads * head_size, bias=False)
        self.value = nn.Linear(width, heads * head_size, bias=False)
        self.gate = nn.Linear(width, heads * head_size)
        self.project = nn.Linear(heads * head_size, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        if bias is None:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            mixed = (q @ k.transpose(-1, -2) * self.scale + bias).softmax(-1) @ v
        return self.project(self.gate(x).sigmoid() * mixed.transpose(2, 3).flatten(3))


class RowAttention(nn.Module):
    """Each sequence attends over its residues, with a bias from the pairs (algorithm 7): msa, pair -> as msa."""

    def __init__(self, sizes: Widths) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.msa)
        self.pair_norm = nn.LayerNorm(sizes.pair)
        self.bias = nn.Linear(sizes.pair, sizes.msa_heads, bias=False)
        self.attention = GatedAttention(sizes.msa, sizes.msa_heads, sizes.msa_head_size)

    def forward(self, msa: Tensor, pair: Tensor) -> Tensor:
        bias = self.bias(self.pair_norm(pair)).permute(0, 3, 1, 2)[:, None]
        return self.attention(self.norm(msa), bias)


class ColumnAttention(nn.Module):
    """Each residue attends over the sequences (algorithm 8): msa -> the same."""

    def __init__(self, sizes: Widths) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.msa)
        self.attention = GatedAttention(sizes.msa, sizes.msa_heads, sizes.msa_head_size)

    def forward(self, msa: Tensor) -> Tensor:
        return self.attention(self.norm(msa).transpose(1, 2)).transpose(1, 2)


class GlobalColumnAttention(nn.Module):
    """One query per residue, the mean over the sequences, and one head of keys (algorithm 19): msa -> the same.

    Its cost is linear in the sequences, of which the extra stack has thousands.
    """

    def __init__(self, sizes: Widths) -> None:
        super().__init__()
        self.heads = sizes.msa_heads
        self.scale = sizes.msa_head_size**-0.5
        inner = sizes.msa_heads * sizes.msa_head_size
        self.norm = nn.LayerNorm(sizes.msa)
        self.query = nn.Linear(sizes.msa, inner, bias=False)
        self.key = nn.Linear(sizes.msa, sizes.msa_head_size, bias=False)
        self.value = nn.Linear(sizes.msa, sizes.msa_head_size, bias=False)
        self.gate = nn.Linear(sizes.msa, inner)
        self.project = nn.Linear(inner, sizes.msa)

    def forward(self, msa: Tensor) -> Tensor:
        x = self.norm(msa).transpose(1, 2)
        q = self.query(x.mean(2)).unflatten(-1, (self.heads, -1))
        scores = q @ self.key(x).transpose(-1, -2) * self.scale
        mixed = (scores.softmax(-1) @ self.value(x)).flatten(2)
        return self.project(self.gate(x).sigmoid() * mixed[:, :, None]).transpose(1, 2)


class Transition(nn.Module):
    """Two linear layers with a ReLU between, on the normed input (algorithms 9 and 15): [..., width] -> the same."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.norm(x))))


class OuterProductMean(nn.Module):
    """What two residues have in common, the mean over the sequences (algorithm 10): msa -> as pair."""

    def __init__(self, sizes: Widths) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.msa)
        self.left = nn.Linear(sizes.msa, sizes.outer)
        self.right = nn.Linear(sizes.msa, sizes.outer)
        self.project = nn.Linear(sizes.outer**2, sizes.pair)

    def forward(self, msa: Tensor) -> Tensor:
        x = self.norm(msa)
        sequences, residues = x.shape[1], x.shape[2]
        left, right = self.left(x).flatten(2), self.right(x).flatten(2)
        outer = left.transpose(1, 2) @ right / sequences
        outer = outer.unflatten(1, (residues, -1)).unflatten(3, (residues, -1))
        return self.project(outer.transpose(2, 3).flatten(3))


class TriangleMultiplication(nn.Module):
    """Each pair from the two other sides of all triangles on it: pair -> the same.

    Outgoing (algorithm 11): (i, j) from (i, k) and (j, k); incoming (algorithm 12): from (k, i) and (k, j).
    """

    def __init__(self, width: int, hidden: int, *, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.norm = nn.LayerNorm(width)
        self.left = nn.Linear(width, hidden)
        self.left_gate = nn.Linear(width, hidden)
        self.right = nn.Linear(width, hidden)
        self.right_gate = nn.Linear(width, hidden)
        self.norm_out = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, width)
        self.gate = nn.Linear(width, width)

    def forward(self, pair: Tensor) -> Tensor:
        x = self.norm(pair)
        left = (self.left_gate(x).sigmoid() * self.left(x)).permute(0, 3, 1, 2)
        right = (self.right_gate(x).sigmoid() * self.right(x)).permute(0, 3, 1, 2)
        # [batch, hidden, i, k] @ [batch, hidden, k, j], whichever of the two is the summed residue.
        product = left @ right.transpose(2, 3) if self.outgoing else left.transpose(2, 3) @ right
        return self.gate(x).sigmoid() * self.project(self.norm_out(product.permute(0, 2, 3, 1)))


class TriangleAttention(nn.Module):
    """The pairs of one residue attend to each other, biased by the pairs that close the triangles: pair -> the same.

    Around the starting node (algorithm 13): (i, j) over (i, k), biased by (j, k). Around the ending node (algorithm
    14): the same on the transposed pairs.
    """

    def __init__(self, width: int, heads: int, head_size: int, *, starting: bool) -> None:
        super().__init__()
        self.starting = starting
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Linear(width, heads, bias=False)
        self.attention = GatedAttention(width, heads, head_size)

    def forward(self, pair: Tensor) -> Tensor:
        x = self.norm(pair if self.starting else pair.transpose(1, 2))
        x = self.attention(x, self.bias(x).permute(0, 3, 1, 2)[:, None])
        return x if self.starting else x.transpose(1, 2)


class Block(nn.Module):
    """One block (algorithm 6; with ``extra``, of the extra alignment's stack, algorithm 18): msa, pair -> the same."""

    def __init__(self, sizes: Widths, dropout: float, pair_dropout: float, *, extra: bool) -> None:
        super().__init__()
        self.row = RowAttention(sizes)
        self.column = GlobalColumnAttention(sizes) if extra else ColumnAttention(sizes)
        self.msa_transition = Transition(sizes.msa, sizes.expansion)
        self.outer = OuterProductMean(sizes)
        self.outgoing = TriangleMultiplication(sizes.pair, sizes.triangle, outgoing=True)
        self.incoming = TriangleMultiplication(sizes.pair, sizes.triangle, outgoing=False)
        self.starting = TriangleAttention(sizes.pair, sizes.pair_heads, sizes.pair_head_size, starting=True)
        self.ending = TriangleAttention(sizes.pair, sizes.pair_heads, sizes.pair_head_size, starting=False)
        self.pair_transition = Transition(sizes.pair, sizes.expansion)
        self.drop_msa = SharedDropout(dropout, 1)
        self.drop_rows = SharedDropout(pair_dropout, 1)
        self.drop_columns = SharedDropout(pair_dropout, 2)

    def forward(self, msa: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        msa = msa + self.drop_msa(self.row(msa, pair))
        msa = msa + self.column(msa)
        msa = msa + self.msa_transition(msa)
        pair = pair + self.outer(msa)
        pair = pair + self.drop_rows(self.outgoing(pair))
        pair = pair + self.drop_rows(self.incoming(pair))
        pair = pair + self.drop_rows(self.starting(pair))
        pair = pair + self.drop_columns(self.ending(pair))
        return msa, pair + self.pair_transition(pair)
