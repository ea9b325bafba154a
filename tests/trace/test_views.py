"""Views compose and vanish, and whatever is left does what the chain did."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.trace.draft import Builder, Value
from superscaler.trace.views import block, expand, permute, reshape, unblock


def executed(x: Value, values: dict[int, torch.Tensor]) -> torch.Tensor:
    """The value of a chain of views, by plain torch."""
    if id(x) in values:
        return values[id(x)]
    assert x.op is not None
    source = executed(x.op.inputs[0], values)
    if x.op.target == "superscaler.reshape":
        return source.reshape(x.shape)
    assert x.op.target == "aten.permute.default"
    return source.permute(x.op.args[1])


@settings(deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.booleans(), st.randoms(use_true_random=False)), max_size=5),
)
def test_a_chain_of_reshapes_and_permutations(sizes: list[int], steps: list[tuple[bool, object]]) -> None:
    b = Builder()
    x = given = Value(tuple(sizes), "float32", name="x")
    expected = plain = torch.arange(prod(sizes)).reshape(sizes)
    for is_permutation, random in steps:
        if is_permutation:
            order = list(range(x.rank))
            random.shuffle(order)
            x, expected = permute(b, x, order), expected.permute(order)
        else:
            shape = regrouped(list(x.shape), random)
            x, expected = reshape(b, x, shape), expected.reshape(shape)
    assert x.shape == expected.shape
    assert torch.equal(executed(x, {id(given): plain}), expected)


def regrouped(shape: list[int], random: object) -> list[int]:
    """Another shape of as many elements: neighbours merged, or a dim split."""
    at = random.randrange(len(shape))
    if at + 1 < len(shape):
        return [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
    ways = next((n for n in (2, 3) if shape[at] % n == 0), 1)
    return [*shape[:at], ways, shape[at] // ways]


def test_what_changes_nothing_is_no_op() -> None:
    b = Builder()
    x = Value((2, 3, 4), "float32", name="x")
    assert reshape(b, reshape(b, x, (6, 4)), (2, 3, 4)) is x
    assert permute(b, permute(b, x, (2, 0, 1)), (1, 2, 0)) is x
    assert expand(b, x, (2, 3, 4)) is x
    assert block(b, x, 1, 0, 3) is x


def test_reshapes_whose_digits_cross_stay_two() -> None:
    b = Builder()
    x = Value((2, 6), "float32", name="x")
    y = reshape(b, reshape(b, x, (12,)), (3, 4))
    assert y.op is not None
    assert y.op.inputs[0].shape == (12,)


def test_equal_views_are_shared() -> None:
    b = Builder()
    x = Value((2, 6), "float32", name="x")
    assert reshape(b, x, (12,)) is reshape(b, x, (12,))


def test_a_view_of_a_constant_is_a_constant() -> None:
    b = Builder()
    x = b.full((2, 3), 5.0, "float32")
    for y in (reshape(b, x, (6,)), permute(b, x, (1, 0)), expand(b, x, (4, 2, 3)), block(b, x, 1, 0, 1)):
        assert y.fill == 5.0
        assert y.op is not None
        assert y.op.target == "superscaler.full"


@pytest.mark.parametrize(("start", "length", "target"), [(4, 2, "superscaler.block"), (3, 2, "aten.slice.Tensor")])
def test_aligned_slices_are_blocks(start: int, length: int, target: str) -> None:
    b = Builder()
    y = block(b, Value((8, 3), "float32", name="x"), 0, start, length)
    assert y.op is not None
    assert (y.op.target, y.shape) == (target, (2, 3))
    back = unblock(b, y, 0, start, 8)
    assert back.op is not None
    assert back.op.target == ("superscaler.unblock" if target == "superscaler.block" else "superscaler.slice_backward")


def test_a_kept_dim_that_is_squeezed_is_not_kept() -> None:
    b = Builder()
    x = Value((4, 5), "float32", name="x")
    total = b.op("aten.sum.dim_IntList", [x, [0], True], ((1, 5), "float32"))
    y = reshape(b, total, (5,))
    assert y.op is not None
    assert y.op.args == ("$0", [0], False)
