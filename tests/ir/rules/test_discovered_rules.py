"""Discovery against the table: whatever it finds for an op that we know is true of that op."""

from __future__ import annotations

from typing import Any

import op_examples_models
import op_examples_tensors
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_examples import EXAMPLES
from split_harness import Case, compare, execute, run_split, splittings, whole_part

from superscaler.errors import SplitError
from superscaler.ir.rules.rule import Rule
from superscaler.runtime.ops import function
from superscaler.transforms.discover import search

assert op_examples_models
assert op_examples_tensors


def _literal(arg: Any) -> bool:
    """Whether an argument is the same for every part."""
    if isinstance(arg, list | tuple):
        return all(_literal(a) for a in arg)
    return not (isinstance(arg, str) and arg.startswith("#"))


def _discovered(case: Case) -> Rule | None:
    ins = tuple(tuple(x.shape) for x in case.inputs)
    dtypes = [str(x.dtype).removeprefix("torch.") for x in case.inputs]
    try:
        return search(case.op, ins, tuple(case.outs or ()), dtypes, function(case.target))
    except SplitError:
        return None


TARGETS = sorted(t for t in EXAMPLES if t.startswith("aten."))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_what_is_discovered_is_true(target: str, data: st.DataObject) -> None:
    case = EXAMPLES[target](data.draw, target)
    rule = _discovered(case) if _literal(case.args) else None
    if rule is not None:
        case.rule = rule
        splits, space = data.draw(splittings(rule))
        assume(all(bool(x.isfinite().all()) for x in execute(case.op, rule, case.inputs, whole_part(case))))
        compare(case, run_split(case, splits, space))


@pytest.mark.parametrize(
    "target", ["aten.mm.default", "aten.bmm.default", "aten.add.Tensor", "aten.mul.Tensor", "aten.sum.dim_IntList"]
)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_the_table_says_is_discovered(target: str, data: st.DataObject) -> None:
    """As many dims can be split as the table says, with the same linear groups (sizes above one)."""
    case = EXAMPLES[target](data.draw, target)
    rule = _discovered(case)
    assert rule is not None
    free = [sorted(d.size for d in r.dims.values() if not d.whole and d.size > 1) for r in (rule, case.rule)]
    assert free[0] == free[1]
    assert rule.linear == case.rule.linear
