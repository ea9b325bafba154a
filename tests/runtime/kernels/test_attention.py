"""The Triton kernels, in Triton's interpreter, against plain attention in float64."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import BackendUnavailable, UsageError
from superscaler.runtime.kernels import attention
from superscaler.runtime.memory import Pool
from superscaler.runtime.serving.kv_cache import KVCache
from superscaler.runtime.serving.kv_layout import KVLayout

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def cache_with(lengths, heads, dim, dtype, layers_per_chunk=1, seed=0):
    """Sequences of random keys and values in vTensors."""
    generator = torch.Generator().manual_seed(seed)
    layout = KVLayout(layers_per_chunk, heads, dim, dtype, layers_per_chunk)
    cache = KVCache(Pool("host", budget=1 << 28, chunk=4096), layout, max_tokens=4096)
    sequences = [cache.create() for _ in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        sequence.append(length)
        for layer in range(layers_per_chunk):
            for view in (sequence.keys(layer), sequence.values(layer)):
                view.copy_(torch.randn(view.shape, generator=generator))
    return cache, sequences


def expected(query, sequence, layer, seen):
    """Plain attention in float64: query ``[rows, query heads, dim]``, row i sees ``seen[i]`` tokens."""
    group = query.shape[1] // sequence.cache.layout.heads
    keys = sequence.keys(layer).double().repeat_interleave(group, dim=1)
    values = sequence.values(layer).double().repeat_interleave(group, dim=1)
    scores = torch.einsum("mhd,nhd->hmn", query.double(), keys) / query.shape[-1] ** 0.5
    hidden = torch.arange(sequence.length)[None, :] >= seen[:, None]
    return torch.einsum("hmn,nhd->mhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


def assert_close(got, want, dtype):
    assert (got.double() - want).abs().max() <= TOLERANCE[dtype] * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("splits", [1, 3, 8])
def test_decode_over_sequences_of_unequal_length(dtype, splits):
    lengths = [1, 63, 64, 65, 300]
    cache, sequences = cache_with(lengths, heads=2, dim=32, dtype=dtype)
    query = torch.randn(len(lengths), 4, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = attention.decode(query, cache.batch(sequences, 0), splits=splits)
    for row, sequence in enumerate(sequences):
        want = expected(query[row : row + 1], sequence, 0, torch.tensor([sequence.length]))
        assert_close(got[row : row + 1], want, dtype)


def test_decode_matches_sdpa_in_float64():
    cache, (sequence,) = cache_with([200], heads=2, dim=64, dtype=torch.float32)
    query = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(2))
    want = torch.nn.functional.scaled_dot_product_attention(
        query.double()[:, :, None], *(v.double().transpose(0, 1)[None] for v in (sequence.keys(0), sequence.values(0)))
    )[:, :, 0]
    assert_close(attention.decode(query, cache.batch([sequence], 0)), want, torch.float32)


def test_an_empty_sequence_yields_zeros():
    cache, sequences = cache_with([0, 5], heads=1, dim=16, dtype=torch.float32)
    got = attention.decode(torch.ones(2, 1, 16), cache.batch(sequences, 0), splits=2)
    assert not got[0].any()
    assert got[1].any()


def test_layers_that_share_a_plane_are_strided():
    cache, sequences = cache_with([70, 5], heads=1, dim=16, dtype=torch.float32, layers_per_chunk=3)
    query = torch.randn(2, 2, 16)
    for layer in range(3):
        got = attention.decode(query, cache.batch(sequences, layer))
        for row, sequence in enumerate(sequences):
            want = expected(query[row : row + 1], sequence, layer, torch.tensor([sequence.length]))
            assert_close(got[row : row + 1], want, torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_prefill_behind_a_prefix(dtype):
    lengths, new = [1, 80, 64, 130], [1, 16, 64, 70]
    cache, sequences = cache_with(lengths, heads=2, dim=32, dtype=dtype)
    query = torch.randn(sum(new), 4, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0)], dtype=torch.int32)
    got = attention.prefill(query, starts, max(new), cache.batch(sequences, 0))
    for index, sequence in enumerate(sequences):
        rows = slice(starts[index], starts[index + 1])
        seen = torch.arange(sequence.length - new[index], sequence.length) + 1
        assert_close(got[rows], expected(query[rows], sequence, 0, seen), dtype)


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 40]),
    dim=st.sampled_from([16, 24, 64]),
    splits=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_shape(lengths, heads, group, dim, splits, seed):
    cache, sequences = cache_with(lengths, heads, dim, torch.float32, seed=seed)
    query = torch.randn(len(lengths), heads * group, dim, generator=torch.Generator().manual_seed(seed))
    cached = cache.batch(sequences, 0)
    decoded = attention.decode(query, cached, splits=splits)
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32)
    prefilled = attention.prefill(query, starts, 1, cached)
    for row, sequence in enumerate(sequences):
        want = expected(query[row : row + 1], sequence, 0, torch.tensor([sequence.length]))
        assert_close(decoded[row : row + 1], want, torch.float32)
        assert_close(prefilled[row : row + 1], want, torch.float32)


@pytest.mark.parametrize(("layers_per_chunk", "apart"), [(1, 1), (2, 1), (1, 2)])
def test_new_tokens_are_stored_in_the_last_rows(layers_per_chunk, apart):
    lengths = [1, 7, 0, 64]
    cache, sequences = cache_with(lengths, heads=2, dim=24, dtype=torch.float16, layers_per_chunk=layers_per_chunk)
    before = [(s.keys(0).clone(), s.values(0).clone()) for s in sequences]
    both = torch.randn(4, 6, 24 * apart).half()[:, :, ::apart]
    attention.store(both[:, 1:3], both[:, 3:5], cache.batch(sequences, 0))
    for number, (sequence, old) in enumerate(zip(sequences, before, strict=True)):
        for now, was, new in zip(
            (sequence.keys(0), sequence.values(0)), old, (both[:, 1:3], both[:, 3:5]), strict=True
        ):
            assert torch.equal(now[:-1], was[:-1])
            assert not len(now) or torch.equal(now[-1], new[number])


def test_nothing_new_is_nothing_to_do():
    cache, sequences = cache_with([3], heads=1, dim=16, dtype=torch.float32)
    starts = torch.zeros(2, dtype=torch.int32)
    assert attention.prefill(torch.empty(0, 1, 16), starts, 0, cache.batch(sequences, 0)).shape == (0, 1, 16)


@pytest.mark.parametrize(
    ("programs", "longest", "splits"),
    [(64, 32768, 17), (512, 32768, 3), (4096, 32768, 1), (8, 1 << 20, 64), (8, 1024, 8), (8, 1, 1), (0, 0, 1)],
)
def test_sequences_are_cut_until_the_device_is_full(monkeypatch, programs, longest, splits):
    class Properties:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert attention._splits(programs, longest, 64, torch.device("cuda")) == splits


def test_what_does_not_fit_is_named(monkeypatch):
    cache, sequences = cache_with([3], heads=2, dim=16, dtype=torch.float32)
    cached = cache.batch(sequences, 0)
    with pytest.raises(UsageError, match="3 query heads over 2"):
        attention.decode(torch.empty(1, 3, 16), cached)
    with pytest.raises(UsageError, match=r"float64"):
        attention.decode(torch.empty(1, 2, 16, dtype=torch.float64), cached)
    wide, wide_sequences = cache_with([3], heads=2, dim=257, dtype=torch.float32)
    with pytest.raises(UsageError, match="at most 256"):
        attention.decode(torch.empty(1, 2, 257), wide.batch(wide_sequences, 0))
    for rows, why in ((0, "0 tokens for 1"), (2, "2 tokens for 1")):
        with pytest.raises(UsageError, match=why):
            attention.decode(torch.empty(rows, 2, 16), cached)
    with pytest.raises(UsageError, match="on the device of the cache"):
        attention.decode(torch.empty(2, 16), cached)
    with pytest.raises(UsageError, match="on the device of the cache"):
        attention.decode(torch.empty(1, 2, 16, device="meta"), cached)
    with pytest.raises(UsageError, match="-1 parts"):
        attention.decode(torch.empty(1, 2, 16), cached, splits=-1)
    with pytest.raises(UsageError, match="1 starts for 1"):
        attention.prefill(torch.empty(1, 2, 16), torch.zeros(1, dtype=torch.int32), 1, cached)
    rows = torch.empty(1, 2, 16)
    for keys, values in (
        (rows, rows.double()), (rows, torch.empty(1, 1, 16)), (torch.empty(1, 1, 16),) * 2, (torch.empty(2, 2, 16),) * 2
    ):  # fmt: skip
        with pytest.raises(UsageError):
            attention.store(keys, values, cached)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendUnavailable, match="need a GPU"):
        attention.decode(torch.empty(1, 2, 16), cached)
