"""What the check judges to be a legal move does to regions what it says, at all coordinates and sizes."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from superscaler.ir.check.moves import collective, finer, gathered, mismatch
from superscaler.ir.check.regions import steady
from superscaler.ir.layout import Axis, Layout, Mesh, Partial, Shard, Space, State
from superscaler.ir.region import Region, tiles

SHAPE = (12, 7)
DIGITS = (Shard(0, 12), Shard(0, 6, 2), Shard(0, 2, 6), Shard(0, 4, 3), Shard(0, 3), Shard(1, 7))
NAMES = ("a", "b", "c")


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Three space axes of two or three ways, nested in any order."""
    order = draw(st.permutations(NAMES))
    axes = tuple(Axis(name, draw(st.integers(2, 3)), "space") for name in order)
    ways = tuple(axis.ways for axis in axes)
    count = ways[0] * ways[1] * ways[2]
    return Space(axes, (Mesh("m", tuple(order), ways, tuple(range(count))),))


STATES = st.one_of(st.none(), st.sampled_from(DIGITS), st.just(Partial()))


@st.composite
def layouts(draw: st.DrawFn, space: Space) -> Layout:
    return space.layout("m", {name: draw(STATES) for name in NAMES})


def region(space: Space, layout: Layout, device: int) -> Region:
    return space.region(SHAPE, layout, space.mesh("m").coords(device))


@given(st.data())
def test_a_legal_slice_is_taken_out_of_what_the_device_holds(data: st.DataObject) -> None:
    space = data.draw(spaces())
    coarse = data.draw(layouts(space))
    state: State = data.draw(st.sampled_from(DIGITS))
    axis = data.draw(st.sampled_from(NAMES))
    fine = space.layout("m", {**dict(coarse.states), axis: state})
    assume(finer(space, coarse, fine) is None)
    for device in space.mesh("m").devices:
        assert region(space, fine, device).within(region(space, coarse, device))


@given(st.data())
def test_a_legal_collective_gives_each_member_its_part(data: st.DataObject) -> None:
    """The union of what the group holds (or, for sums, what each member holds) covers each member's new part once."""
    space = data.draw(spaces())
    axes = tuple(data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)))
    kind = data.draw(st.sampled_from(("all_gather", "reduce_scatter", "all_to_all")))
    old = st.just(Partial()) if kind == "reduce_scatter" else st.sampled_from(DIGITS)
    new = st.none() if kind == "all_gather" else st.sampled_from(DIGITS)
    states = {name: data.draw(old if name in axes else STATES) for name in NAMES}
    have = space.layout("m", states)
    gives = space.layout("m", states | {axis: data.draw(new) for axis in axes})
    assume(collective(space, kind, have, gives, axes) is None)
    for group in space.mesh("m").lines(axes):
        parts = [region(space, have, device) for device in group]
        for device in group:
            want = region(space, gives, device)
            if kind == "reduce_scatter":
                assert all(part == parts[0] for part in parts)
                assert want.within(parts[0])
            else:
                assert tiles([p for part in parts if (p := part & want).volume], want)


@given(st.data())
def test_a_legal_all_reduce_adds_terms_of_one_region(data: st.DataObject) -> None:
    space = data.draw(spaces())
    axes = tuple(data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)))
    have = space.layout("m", {name: Partial() if name in axes else data.draw(STATES) for name in NAMES})
    assert collective(space, "all_reduce", have, have.without(*axes), axes) is None
    for group in space.mesh("m").lines(axes):
        assert len({region(space, have, device) for device in group}) == 1


@pytest.mark.parametrize("wrong", ["all_gather", "all_to_all", "slice"])
def test_an_outer_axis_may_not_change_under_an_inner_one(wrong: str) -> None:
    """``b`` splits the parts of ``a``: without ``a`` its parts would lie elsewhere."""
    space = Space((Axis("a", 2, "space"), Axis("b", 2, "space")), (Mesh("m", ("a", "b"), (2, 2), (0, 1, 2, 3)),))
    both, inner = space.layout("m", {"a": Shard(0, 12), "b": Shard(0, 12)}), space.layout("m", {"b": Shard(0, 12)})
    other = space.layout("m", {"a": Shard(1, 7), "b": Shard(0, 12)})
    reasons = {
        "all_gather": gathered(space, both, ("a",))[1],
        "all_to_all": collective(space, "all_to_all", both, other, ("a",)),
        "slice": finer(space, inner, both),
    }
    reason = reasons[wrong]
    assert reason is not None
    assert reason[0] == "wrong region"


def test_what_is_wrong_is_named_by_its_axis() -> None:
    layout = Layout("m", (("a", Partial()),))
    assert mismatch(layout, Layout("m")) == ("partial read as complete", "along 'a' it is still a term of a sum")
    assert mismatch(Layout("m"), layout) is not None
    assert mismatch(layout, Layout("m", (("a", Partial("max")),)))[0] == "wrong kind of partial"  # type: ignore[index]
    assert mismatch(layout, Layout("other"))[0] == "wrong layout"  # type: ignore[index]


@given(st.data())
def test_what_holds_for_whole_time_holds_at_every_index(data: st.DataObject) -> None:
    """Where ``steady`` names axes, pieces between devices that agree on them stay right at each time index."""
    ranks = data.draw(st.permutations(("a", "b", "j")))
    ways = {name: data.draw(st.integers(2, 3)) for name in ranks}
    axes = tuple(Axis(n, ways[n], "time" if n == "j" else "space") for n in ranks)
    names = tuple(n for n in ranks if n != "j")
    mesh = Mesh("m", names, tuple(ways[n] for n in names), tuple(range(ways["a"] * ways["b"])))
    space = Space(axes, (mesh,))
    source = space.layout("m", {n: data.draw(st.one_of(st.none(), st.sampled_from(DIGITS))) for n in ranks})
    target = space.layout("m", {n: data.draw(st.one_of(st.none(), st.sampled_from(DIGITS))) for n in ranks})
    agree = steady(space, source, target)
    assume(agree is not None)
    for sender, receiver in product(mesh.devices, mesh.devices):
        ours, theirs = mesh.coords(sender), mesh.coords(receiver)
        if any(ours[axis] != theirs[axis] for axis in agree or ()):
            continue
        piece = space.region(SHAPE, source.without("j"), ours) & space.region(SHAPE, target.without("j"), theirs)
        for j in range(ways["j"]):
            sent = piece & space.region(SHAPE, source, {**ours, "j": j})
            assert sent == piece & space.region(SHAPE, target, {**theirs, "j": j})
