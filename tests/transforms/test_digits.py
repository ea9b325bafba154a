"""Digits that axes split beside each other: no part is empty, and the parts tile the dim."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.layout import Axis, Mesh, Shard, Space
from superscaler.ir.region import Region, tiles
from superscaler.transforms.digits import Digit, Taken, free, overlap, room


def regions(size: int, splits: list[Taken]) -> list[Region]:
    """The regions of a dim of ``size`` at all coordinates of axes that split it so, in order."""
    axes = tuple(Axis(f"a{i}", ways, "space") for i, (_, ways) in enumerate(splits))
    mesh = Mesh("m", tuple(a.name for a in axes), tuple(a.ways for a in axes), tuple(range(1000)))
    space = Space(axes, (mesh,))
    layout = space.layout("m", {a.name: Shard(0, *digit) for a, (digit, _) in zip(axes, splits, strict=True)})
    indices = product(*(range(a.ways) for a in axes))
    names = [a.name for a in axes]
    return [space.region((size,), layout, dict(zip(names, index, strict=True))) for index in indices]


@st.composite
def taken(draw: st.DrawFn) -> tuple[int, list[Taken]]:
    """Axes that each took a free digit of a dim, one after the other."""
    size = draw(st.integers(1, 60))
    found: list[Taken] = []
    for _ in range(draw(st.integers(1, 3))):
        ways = draw(st.integers(2, 5))
        digit = free(size, ways, found)
        if digit is not None:
            found.append((digit, ways))
    return size, found


@given(taken())
def test_free_digits_tile_the_dim_with_no_empty_part(case: tuple[int, list[Taken]]) -> None:
    size, found = case
    parts = regions(size, found)
    assert tiles(parts, Region.full((size,)))
    assert not any(part.empty for part in parts)


@given(taken(), st.integers(2, 5))
def test_a_free_digit_has_room(case: tuple[int, list[Taken]], ways: int) -> None:
    size, found = case
    digit = free(size, ways, found)
    assert digit is None or room(found, digit, ways)


@given(st.integers(1, 60), st.integers(2, 5))
def test_the_whole_dim_is_free_for_as_many_parts_as_it_is_long(size: int, ways: int) -> None:
    assert (free(size, ways, []) is not None) == (size >= ways)


def test_equal_parts_are_preferred() -> None:
    assert free(12, 3, [((2, 6), 2)]) == (3, 2)
    assert free(7, 3, []) == (7, 1)
    assert free(14, 2, [((2, 7), 2)]) == (7, 1)


def test_contiguous_parts_only_at_the_top_of_the_dim() -> None:
    assert free(12, 3, [((2, 6), 2)], contiguous=True) is None
    assert free(12, 3, [((12, 1), 2)], contiguous=True) == (12, 1)


def test_overlap() -> None:
    def apart(a: Digit, b: Digit) -> bool:
        return not overlap(a, b)

    assert apart((2, 6), (3, 2))
    assert apart((4, 1), (4, 1))
    assert overlap((4, 1), (2, 2))
    assert overlap((12, 1), (3, 4))
