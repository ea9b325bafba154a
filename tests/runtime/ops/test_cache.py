"""Attention over caches on a GPU: our kernels, in Triton's interpreter, and nothing that waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from superscaler import models
from superscaler.decoding import compile_decoder
from superscaler.ir.cluster import Cluster
from superscaler.runtime.launch import launch
from superscaler.runtime.ops import cache
from superscaler.runtime.serving.generate import generate


class NothingIsRead(TorchDispatchMode):
    """Refuses to turn a tensor into a number: on a GPU that waits for all that is under way."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read from the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_a_gpu() -> Iterator[None]:
    """Numbers are on the device, as far as the kernels' choice is concerned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "readable", lambda start: False)
        yield


def test_what_is_read_is_noticed() -> None:
    with NothingIsRead(), pytest.raises(AssertionError, match="was read"):
        int(torch.tensor(3))


def test_the_choice() -> None:
    q, host, device = torch.zeros(1, 2, 1, 16), torch.tensor(3), torch.zeros((), dtype=torch.int64, device="meta")
    assert cache.choose(q, q, host) is cache.over_filled
    assert cache.choose(q, q, device) is cache.over_addresses
    assert cache.choose(q.double(), q.double(), device) is cache.over_all
    assert cache.choose(q, torch.zeros(1, 2, 1, 8), device) is cache.over_all
    assert cache.choose(torch.zeros(1, 2, 1, 512), torch.zeros(1, 2, 1, 512), device) is cache.over_all


def pieces_attended(pieces: list[int], q: Tensor, k: Tensor, v: Tensor, scale: float | None, spare: int) -> Tensor:
    """Attention piece by piece, over caches with ``spare`` rows that are never written and hold no numbers."""
    batch, heads, total, dim = k.shape
    keys, values = (torch.full((total + spare, batch, heads, dim), torch.nan, dtype=k.dtype) for _ in range(2))
    found: list[Tensor] = []
    start = 0
    for count in pieces:
        now, at = slice(start, start + count), torch.tensor(start)
        cache.cache_append_(keys, k[:, :, now], at)
        cache.cache_append_(values, v[:, :, now], at)
        found.append(cache.cached_attention(q[:, :, now], keys, values, at, scale))
        assert found[-1].is_contiguous()
        start += count
    return torch.cat(found, dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    group=st.integers(1, 2),
    scale=st.sampled_from([None, 0.3]),
    spare=st.integers(0, 3),
)
@settings(deadline=None, max_examples=15)
def test_any_pieces(
    dtype: torch.dtype, pieces: list[int], batch: int, heads: int, group: int, scale: float | None, spare: int
) -> None:
    torch.manual_seed(0)
    q = torch.randn(batch, heads * group, sum(pieces), 16, dtype=torch.float64)
    k, v = (torch.randn(batch, heads, sum(pieces), 16, dtype=torch.float64) for _ in range(2))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "readable", lambda start: False)
        got = pieces_attended(pieces, *(x.to(dtype) for x in (q, k, v)), scale, spare)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("count", [1, 4])
def test_nothing_is_read_from_the_device(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter itself reads what it is given: the launch is where the device's own time begins.
    launched: list[str] = []
    monkeypatch.setattr(cache, "decode", lambda q, cached, scale: launched.append("decode") or q)
    monkeypatch.setattr(cache, "prefill", lambda q, s, m, cached, scale: launched.append("prefill") or q)
    keys, values, new = torch.zeros(8, 1, 2, 16), torch.zeros(8, 1, 2, 16), torch.ones(1, 2, count, 16)
    with NothingIsRead():
        start = torch.tensor(3)
        cache.cache_append_(keys, new, start)
        cache.cached_attention(new, keys, values, start, None)
        cache.over_all(new.double(), keys.double(), values.double(), start, None)
    assert launched == ["decode" if count == 1 else "prefill"]
    assert keys.sum() == new.sum()


@pytest.mark.usefixtures("on_a_gpu")
def test_a_plan_decodes_with_our_kernels() -> None:
    torch.manual_seed(3)
    model, _ = models.build("gpt", "tiny")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plan = compile_decoder(model, cluster=Cluster.local(1), prompt=4, tokens=24)
    ids = [5, 9, 1, 33, 7, 2, 8]
    with launch(plan, model, backend="inline") as job:
        tokens = generate(job, ids, 8)
    for token in tokens:
        assert int(model.logits(torch.tensor([ids]))[0, -1].argmax()) == token  # type: ignore[operator]
        ids.append(token)
