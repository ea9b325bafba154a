"""Packing agrees with plain indexing, whatever the region looks like."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.region import Region, Span
from superscaler.runtime.packing import assemble, packing


@st.composite
def spans(draw: st.DrawFn, size: int, *, empty: bool = False) -> Span:
    """A non-empty subset of a dim: one interval, a comb, or odd intervals."""
    chosen = draw(st.sets(st.integers(0, size - 1), min_size=0 if empty else 1))
    return Span.of((i, i + 1) for i in chosen)


@st.composite
def nested(draw: st.DrawFn) -> tuple[tuple[int, ...], Region, Region]:
    """A shape, a region of it, and a part of that region."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    whole = Region(draw(spans(size)) for size in shape)
    part = Region(draw(spans(size, empty=True)) & span for size, span in zip(shape, whole, strict=True))
    return shape, whole, part


def indexed(x: torch.Tensor, region: Region) -> torch.Tensor:
    for dim, span in enumerate(region):
        x = x.index_select(dim, torch.tensor([i for a, b in span for i in range(a, b)], dtype=torch.int64))
    return x


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@given(nested())
def test_take_copy_and_put(case: tuple[tuple[int, ...], Region, Region]) -> None:
    shape, whole, part = case
    x = numbered(shape)
    buffer, expected = indexed(x, whole), indexed(x, part)
    pack = packing(whole, part)
    assert torch.equal(pack.take(buffer), expected)
    out = torch.full(part.shape, -1)
    pack.copy(buffer, out)
    assert torch.equal(out, expected)
    target = torch.full_like(buffer, -1)
    pack.put(target, expected)
    assert torch.equal(pack.take(target), expected)
    assert int((target != -1).sum()) == part.volume


def test_a_comb_is_a_view_until_it_is_packed() -> None:
    # Every other pair of rows: what a sequence split behind a reshape of (batch, sequence) looks like.
    pack = packing(Region.full((12, 3)), Region([Span.of([(0, 2), (4, 6), (8, 10)]), Span.full(3)]))
    assert pack.view(numbered((12, 3))).shape == (3, 2, 3)
    assert pack.take(numbered((12, 3)))[:, 0].tolist() == [0, 3, 12, 15, 24, 27]


@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_assemble_puts_parts_and_replicas_together(rows: int, ways: int, data: st.DataObject) -> None:
    owner = data.draw(st.lists(st.integers(0, ways - 1), min_size=rows, max_size=rows))
    x = numbered((rows, 2))
    regions = [Region([Span.of((i, i + 1) for i in range(rows) if owner[i] == w), Span.full(2)]) for w in range(ways)]
    parts = [(region, indexed(x, region)) for region in regions] * 2
    assert torch.equal(assemble((rows, 2), parts), x)
