"""Sums over time: contributions that cover every point once make up the whole."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.check.sums import Domain, missing, points


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    addends = tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4))))
    axes = ("part", "micro")[: draw(st.integers(0, 2))]
    return Domain(addends, axes, tuple(draw(st.integers(1, 4)) for _ in axes), False)


@given(domains(), st.data())
def test_one_contribution_per_point_completes_a_sum(domain: Domain, data: st.DataObject) -> None:
    """Each addend is given per index of the axes it covers, and for all indices of the others."""
    have = 0
    for addend in domain.addends:
        covers = tuple(axis for axis in domain.axes if data.draw(st.booleans()))
        for index in product(*(range(domain.ways[domain.axes.index(axis)]) for axis in covers)):
            at = dict(zip(covers, index, strict=True))
            micro = at.pop("micro", 0)
            found = points(domain, (addend,), covers, tuple(at.items()), "micro")
            bits = found.bits << micro if found.moves else found.bits
            assert not have & bits
            have |= bits
    assert have == domain.full


@given(domains(), st.data())
def test_what_is_missing_is_named(domain: Domain, data: st.DataObject) -> None:
    gap = data.draw(st.integers(0, domain.points - 1))
    text = missing(domain, domain.full & ~(1 << gap))
    assert f"{domain.points - 1} of {domain.points} contributions are in" in text
    assert "missing" in text
