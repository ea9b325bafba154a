"""Every split rule, executed: an op done in parts equals the op done whole, however it is split."""

from __future__ import annotations

import op_examples_models
import op_examples_tensors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_examples import EXAMPLES
from split_harness import Case, compare, run_split, splittings

from superscaler.ir.rules import specs

assert op_examples_models
assert op_examples_tensors


def test_every_target_has_an_example() -> None:
    assert sorted(set(specs()) - set(EXAMPLES)) == []


@pytest.mark.parametrize("target", sorted(specs()))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_parts_recombine(target: str, data: st.DataObject) -> None:
    case: Case = EXAMPLES[target](data.draw, target)
    splits, space = data.draw(splittings(case.rule))
    compare(case, run_split(case, splits, space))
