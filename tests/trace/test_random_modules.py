"""Modules drawn at random (residuals, shared weights, reshapes, concatenations, reductions, gathers, losses): exact."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trace_running import assert_same_as_torch

HIDDEN = 8


class Random(nn.Module):
    """A chain of steps on [batch, seq, hidden]; a step of the same number shares its weights."""

    def __init__(self, steps: list[tuple[str, int]], losses: list[str]) -> None:
        super().__init__()
        self.steps, self.losses = steps, losses
        self.embedding = nn.Embedding(11, HIDDEN)
        self.linears = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN), nn.RMSNorm(HIDDEN)])

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        for name, number in self.steps:
            x = STEPS[name](self, x, ids, number)
        # One more: a loss that is nearly zero is a difference of large numbers, good to fewer digits in torch as well.
        return 1.0 + torch.stack([LOSSES[name](self, x, ids) for name in self.losses]).sum()


def heads(m: Random, x: Tensor, ids: Tensor, n: int) -> Tensor:
    q = m.linears[n](x).unflatten(-1, (2, HIDDEN // 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, is_causal=bool(n)).transpose(1, 2).flatten(2)


def shuffle(m: Random, x: Tensor, ids: Tensor, n: int) -> Tensor:
    first, second = x.chunk(2, dim=-1) if n else (x[..., ::2], x[..., 1::2])
    return torch.cat([second, torch.tanh(first)], -1)


STEPS: dict[str, Callable[[Random, Tensor, Tensor, int], Tensor]] = {
    "linear": lambda m, x, ids, n: m.linears[n](x),
    "residual": lambda m, x, ids, n: x + F.gelu(m.linears[n](x)),
    "norm": lambda m, x, ids, n: m.norms[n](x),
    "lookup": lambda m, x, ids, n: x * m.embedding(ids).sigmoid(),
    "attention": heads,
    "shuffle": shuffle,
    "across": lambda m, x, ids, n: x - x.mean(n, keepdim=True),
    "scaled": lambda m, x, ids, n: x / (x.abs().amax(-1, keepdim=True) + 1.0 + n),
    "softmax": lambda m, x, ids, n: x.softmax(1 + n) @ m.linears[n].weight,
    "gather": lambda m, x, ids, n: x.gather(2, (ids % HIDDEN).unsqueeze(-1).expand(x.shape)) + x,
    "flip": lambda m, x, ids, n: x.flip(1).roll(n, -1) * torch.arange(1, HIDDEN + 1) / HIDDEN,
    "masked": lambda m, x, ids, n: torch.where((ids > 5).unsqueeze(-1), x, x.detach() * 0.5),
    "merged": lambda m, x, ids, n: (
        m.linears[n](x.flatten(0, 1)).view(x.shape).transpose(0, 1).contiguous().transpose(0, 1)
    ),
}
LOSSES: dict[str, Callable[[Random, Tensor, Tensor], Tensor]] = {
    "square": lambda m, x, ids: x.square().mean(),
    "tokens": lambda m, x, ids: F.cross_entropy(
        (m.norms[0](x) @ m.embedding.weight.t()).flatten(0, 1), ids.flatten(), ignore_index=3
    ),
    "spread": lambda m, x, ids: x.var(dim=(0, 1), correction=0).sum() + x.logsumexp(-1).mean(),
    "contrast": lambda m, x, ids: -F.log_softmax(x.mean(1) @ x.mean(1).t(), -1).diagonal().mean(),
}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 1)), min_size=1, max_size=6),
    losses=st.lists(st.sampled_from(sorted(LOSSES)), min_size=1, max_size=3),
    batch=st.integers(1, 4),
    seq=st.integers(1, 5),
)
def test_random_modules(steps: list[tuple[str, int]], losses: list[str], batch: int, seq: int) -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 11, (batch, seq)) if batch * seq > 1 else torch.full((1, 1), 7)
    ids[0, 0] = 7
    assert_same_as_torch(Random([("residual", 0), *steps], losses), (torch.randn(batch, seq, HIDDEN), ids))
