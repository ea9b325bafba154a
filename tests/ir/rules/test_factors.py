"""The dims that a reshape keeps."""

from __future__ import annotations

import pytest

from superscaler.ir.rules.factors import reshape_rule


@pytest.mark.parametrize(
    ("left", "right", "rule"),
    [
        ((8, 5, 12), (40, 3, 4), "b s (h d) -> (b s) h d"),
        ((2, 3, 4, 5), (6, 20), "b s h d -> (b s) (h d)"),
        ((6, 4), (24,), "b h -> (b h)"),
        ((1, 5, 1), (5,), "1 h 1 -> h"),
        ((5, 1), (1, 5, 1), "h 1 -> 1 h 1"),
        ((30, 7), (6, 35), "(b s) h -> b (s h)"),
        ((2, 2, 2), (4, 2), "b s h -> (b s) h"),
        ((), (1, 1), " -> 1 1"),
        # 6 and 4 share no digits but their halves: the rest is whole, and different on both sides
        ((6, 4), (4, 6), "(b x3!) (x2! h) -> (b y5!) (y4! h)"),
        ((0, 3), (3, 0), "x0! x1! -> y0! y1!"),
    ],
)
def test_rules_of_reshapes(left: tuple[int, ...], right: tuple[int, ...], rule: str) -> None:
    assert str(reshape_rule(left, right)) == rule
