"""Attention over a cache: the transform of a graph, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from superscaler import models
from superscaler.errors import PlanError
from superscaler.runtime.ops.cache import cache_append, cache_append_, cached_attention
from superscaler.trace import trace
from superscaler.trace.decoding import trace_decoder
from superscaler.transforms.cache import with_cache


def test_every_layer_gets_two_caches_which_the_entry_updates() -> None:
    model, _ = models.build("gpt", "tiny")
    graph = with_cache(trace_decoder(model, batch=1, tokens=4).graph, 32)
    graph.verify()
    caches = [t for t in graph.tensors if t.kind == "cache"]
    assert [(t.name.rpartition(".")[2], t.shape) for t in caches] == [
        ("keys", (32, 1, 4, 8)),
        ("values", (32, 1, 4, 8)),
    ] * 2
    assert set(graph.updates) == {t.name for t in caches}
    assert graph.inputs == ("ids", "positions", "keep", "start")
    assert not [op for op in graph.ops if op.target == "superscaler.attention"]


class Attend(nn.Module):
    """Attention as ``options`` say, after a linear layer."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q = self.linear(x)
        return F.scaled_dot_product_attention(q, q, q, **self.options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Attend(), "follow it"),
        (Attend(attn_mask=torch.ones(3, 3).tril().bool()), "mask"),
        (nn.Linear(4, 4), "no attention"),
    ],
)
def test_what_is_not_causal_self_attention_is_refused(model: nn.Module, why: str) -> None:
    graph = trace(model, (torch.randn(1, 2, 3, 4),), mode="eval").graph
    with pytest.raises(PlanError, match=why):
        with_cache(graph, 8)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2))
@settings(deadline=None, max_examples=40)
def test_tokens_in_any_pieces_attend_as_they_do_at_once(pieces: list[int], batch: int, heads: int, groups: int) -> None:
    torch.manual_seed(0)
    total, dim = sum(pieces), 4
    q = torch.randn(batch, heads * groups, total, dim, dtype=torch.float64)
    k, v = (torch.randn(batch, heads, total, dim, dtype=torch.float64) for _ in range(2))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    keys, values = (torch.full((total, batch, heads, dim), torch.nan, dtype=torch.float64) for _ in range(2))
    start = 0
    for count in pieces:
        now, at = slice(start, start + count), torch.tensor(start)
        keys, values = cache_append(keys, k[:, :, now], at), cache_append_(values, v[:, :, now], at)
        got = cached_attention(q[:, :, now], keys, values, at, 0.3)
        torch.testing.assert_close(got, want[:, :, now], rtol=1e-12, atol=1e-12)
        start += count
