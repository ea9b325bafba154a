"""Modules drawn at random: residuals, shared weights, reshapes, concatenations, reductions, gathers, several losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

VOCAB = 13


@dataclass(frozen=True)
class Drawn:
    """What a module is made of. A step's number chooses among its variants, and whose weights it shares."""

    steps: tuple[tuple[str, int], ...]
    losses: tuple[str, ...]
    batch: int = 4
    seq: int = 5
    hidden: int = 6

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return Chain(self)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """[batch, seq, hidden] numbers, and [batch, seq] ids of which some (3) are no labels; at least one is."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(2, VOCAB, (self.batch, self.seq), generator=generator)
        ids[0, 0] = 7
        return torch.randn(self.batch, self.seq, self.hidden, generator=generator), ids


class Chain(nn.Module):
    """Steps one after another on [batch, seq, hidden], then the sum of the losses."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        n = drawn.hidden
        self.drawn = drawn
        self.embedding = nn.Embedding(VOCAB, n)
        self.linears = nn.ModuleList([nn.Linear(n, n), nn.Linear(n, n, bias=False)])
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        self.norms = nn.ModuleList([nn.LayerNorm(n), nn.RMSNorm(n)])
        self.scale = nn.Parameter(torch.ones(n) + 0.1 * torch.randn(n))
        self.position = nn.Parameter(0.1 * torch.randn(drawn.seq, n))
        self.convolution = nn.Conv1d(n, n, 3, padding=1)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        for name, number in self.drawn.steps:
            x = STEPS[name](self, x, ids, number)
        return torch.stack([LOSSES[name](self, x, ids) for name in self.drawn.losses]).sum()


def attention(m: Chain, x: Tensor, ids: Tensor, n: int) -> Tensor:
    heads = next(h for h in (2, 3, 5, 7, 1) if x.shape[-1] % h == 0)
    q, k = (m.linears[i](x).unflatten(-1, (heads, -1)).transpose(1, 2) for i in (0, 1))
    return F.scaled_dot_product_attention(q, k, k, is_causal=bool(n)).transpose(1, 2).flatten(2) + x


def twins(m: Chain, x: Tensor, ids: Tensor, n: int) -> Tensor:
    first, second = x.tensor_split(2, dim=-1) if n else (x[..., ::2], x[..., 1::2])
    return torch.cat([second, torch.tanh(first)], -1)


def window(m: Chain, x: Tensor, ids: Tensor, n: int) -> Tensor:
    """Each position with the one before it: an overlap that no split of the sequence keeps."""
    before = torch.cat([x[:, :1], x[:, :-1]], 1)
    return torch.stack([x, before], 2).amax(2) if n else x + 0.5 * before


def mixture(m: Chain, x: Tensor, ids: Tensor, n: int) -> Tensor:
    weights = (x @ m.embedding.weight[:3].t()).softmax(-1)
    experts = torch.stack([m.linears[0](x), m.linears[1](x), x], -1)
    return torch.einsum("bshe,bse->bsh", experts, weights)


STEPS: dict[str, Callable[[Chain, Tensor, Tensor, int], Tensor]] = {
    "linear": lambda m, x, ids, n: m.linears[n](x),
    "residual": lambda m, x, ids, n: x + F.gelu(m.linears[n](x)),
    "feed forward": lambda m, x, ids, n: x + m.down(F.relu(m.up(m.norms[n](x)))),
    "gated": lambda m, x, ids, n: torch.mul(*m.up(x).chunk(2, -1)[:: 1 - 2 * n]),
    "norm": lambda m, x, ids, n: m.norms[n](x),
    "lookup": lambda m, x, ids, n: x * m.embedding(ids) if n else x + m.embedding(ids),
    "attention": attention,
    "twins": twins,
    "window": window,
    "mixture": mixture,
    "position": lambda m, x, ids, n: x + m.position if n else x * m.position.softmax(0),
    "across": lambda m, x, ids, n: x - x.mean(1 + n, keepdim=True),
    "scaled": lambda m, x, ids, n: x / (x.abs().amax(-1, keepdim=True) + 1.0 + n) * m.scale,
    "softmax": lambda m, x, ids, n: x.softmax(1 + n) @ m.linears[n].weight,
    "gather": lambda m, x, ids, n: x.gather(2, (ids % x.shape[-1]).unsqueeze(-1).expand(x.shape)) + x,
    "flip": lambda m, x, ids, n: x.flip(1).roll(n, -1) * torch.arange(1, x.shape[-1] + 1) / x.shape[-1],
    "masked": lambda m, x, ids, n: torch.where((ids > 5).unsqueeze(-1), x, x.detach() * 0.5),
    "merged": lambda m, x, ids, n: m.linears[n](x.flatten(0, 1)).view(x.shape) * m.scale,
    "transposed": lambda m, x, ids, n: x + m.linears[n](x.transpose(0, 1).contiguous()).transpose(0, 1),
    "outer": lambda m, x, ids, n: x + torch.einsum("bsh,bth->bst", x, x).softmax(-1) @ x,
    "cumulative": lambda m, x, ids, n: x.cumsum(1 + n) / x.shape[1 + n],
    "convolution": lambda m, x, ids, n: x + m.convolution(x.transpose(1, 2)).transpose(1, 2),
    "padded": lambda m, x, ids, n: F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mean(-1),
    "squared": lambda m, x, ids, n: x * x.pow(2).sum(-1, keepdim=True).add(1.0).rsqrt(),
}


def tokens(m: Chain, x: Tensor, ids: Tensor) -> Tensor:
    logits = x @ m.embedding.weight.t()
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=3)


LOSSES: dict[str, Callable[[Chain, Tensor, Tensor], Tensor]] = {
    "square": lambda m, x, ids: x.square().mean(),
    "tokens": tokens,
    "margin": lambda m, x, ids: F.relu(1 - x * m.scale).mean(),
    "binary": lambda m, x, ids: F.binary_cross_entropy_with_logits(x.mean(-1), (ids > 6).to(x.dtype)),
    "smooth": lambda m, x, ids: F.smooth_l1_loss(x, m.position.expand_as(x)),
    "per sequence": lambda m, x, ids: x.logsumexp((1, 2)).mean(),
    "weights": lambda m, x, ids: 0.01 * (m.linears[0].weight.square().sum() + m.scale.abs().sum()),
}
WHOLE_BATCH: dict[str, Callable[[Chain, Tensor, Tensor], Tensor]] = {
    "spread": lambda m, x, ids: x.var(dim=(0, 1), correction=0).sum() + x.logsumexp(-1).mean(),
    "contrast": lambda m, x, ids: -F.log_softmax(x.mean(1) @ x.mean(1).t(), -1).diagonal().mean(),
    # Rows of another scale each: of equal ones (what a norm gives), rounding would choose the largest.
    "worst": lambda m, x, ids: (F.softplus(x).mean((1, 2)) * torch.arange(1, len(x) + 1)).amax(),
}
"""Losses that a batch in parts cannot give: a nonlinear function of a reduction over it."""
LOSSES |= WHOLE_BATCH


@st.composite
def drawn_modules(draw: st.DrawFn) -> Drawn:
    step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 1))
    return Drawn(
        (("residual", 0), *draw(st.lists(step, min_size=1, max_size=6))),
        tuple(draw(st.lists(st.sampled_from(sorted(LOSSES)), min_size=1, max_size=2, unique=True))),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 7)),
        draw(st.sampled_from([2, 3, 4, 6, 7, 8])),
    )
