"""The largest part of a tensor is found without looking at every part."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.check.sizes import PartSizes, even, largest
from superscaler.ir.graph import Tensor
from superscaler.ir.layout import Axis, Layout, Mesh, Shard, Space

SHAPE = (12, 7)
DIGITS = (Shard(0, 12), Shard(0, 6, 2), Shard(0, 2, 6), Shard(0, 4, 3), Shard(0, 3), Shard(1, 7))


@st.composite
def split(draw: st.DrawFn) -> tuple[Space, Layout]:
    """Two space axes and a time axis, some with explicit sizes, and a layout of all three."""
    axes: list[Axis] = []
    states: dict[str, Shard | None] = {}
    for name in ("a", "b", "j"):
        digit = draw(st.one_of(st.none(), st.sampled_from(DIGITS)))
        ways = draw(st.integers(2, 4))
        sizes = None
        if digit is not None and draw(st.booleans()):
            cuts = sorted(draw(st.lists(st.integers(0, digit.extent), min_size=ways - 1, max_size=ways - 1)))
            sizes = tuple(b - a for a, b in pairwise([0, *cuts, digit.extent]))
        axes.append(Axis(name, ways, "time" if name == "j" else "space", sizes))
        states[name] = digit
    ways = (axes[0].ways, axes[1].ways)
    space = Space(tuple(axes), (Mesh("m", ("a", "b"), ways, tuple(range(ways[0] * ways[1]))),))
    return space, space.layout("m", states)


@given(split())
def test_the_largest_part_is_the_largest_of_all(drawn: tuple[Space, Layout]) -> None:
    space, layout = drawn
    names = ("a", "b", "j")
    volumes = {
        index: space.region(SHAPE, layout, dict(zip(names, index, strict=True))).volume
        for index in product(*(range(space.axis(n).ways) for n in names))
    }
    assert largest(space, SHAPE, layout, {}) == max(volumes.values())
    if even(space, layout):
        assert len(set(volumes.values())) == 1


@given(split(), st.data())
def test_a_roles_buffers_need_the_largest_of_its_own_parts(drawn: tuple[Space, Layout], data: st.DataObject) -> None:
    space, layout = drawn
    mesh = space.mesh("m")
    workers = tuple(sorted(data.draw(st.sets(st.sampled_from(mesh.devices), min_size=1))))
    most = max(
        space.region(SHAPE, layout, {**mesh.coords(w), "j": j}).volume
        for w in workers
        for j in range(space.axis("j").ways)
    )
    assert PartSizes(space, workers).bytes(Tensor("x", SHAPE, "float64"), layout) == 8 * most
