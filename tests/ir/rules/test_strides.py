"""No op minds how its operands lie in memory: inside a task they may be views of anything."""

from __future__ import annotations

import op_examples_models
import op_examples_tensors
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_examples import EXAMPLES
from split_harness import Case, compare, whole_part
from torch import Tensor

from superscaler.ir.rules import specs
from superscaler.runtime.ops import execute

assert op_examples_models
assert op_examples_tensors


@st.composite
def strided(draw: st.DrawFn, x: Tensor) -> Tensor:
    """The same elements in other places: dims in another order, with gaps between them."""
    order = draw(st.permutations(range(x.ndim)))
    gaps = [draw(st.sampled_from([(0, 1), (1, 1), (0, 2)])) for _ in order]
    moved = x.permute(order)
    sizes = list(zip(gaps, moved.shape, strict=True))
    room = torch.zeros([first + step * n + 1 for (first, step), n in sizes], dtype=x.dtype)
    view = room[tuple(slice(first, first + step * n, step) for (first, step), n in sizes)]
    view.copy_(moved)
    return view.permute([order.index(dim) for dim in range(x.ndim)])


@pytest.mark.parametrize("target", sorted(specs()))
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_operands_may_be_views(target: str, data: st.DataObject) -> None:
    case: Case = EXAMPLES[target](data.draw, target)
    views = [data.draw(strided(x)) for x in case.inputs]
    case.exact = False  # sums over another order of elements round otherwise
    compare(case, list(execute(case.op, case.rule, views, whole_part(case))))
