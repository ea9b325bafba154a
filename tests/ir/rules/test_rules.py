"""Every split rule, executed: an op done in parts equals the op done whole, however it is split."""

from __future__ import annotations

from typing import Any

import op_examples_models
import op_examples_tensors
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_examples import EXAMPLES
from split_harness import Case, compare, run_split, splittings

from superscaler.ir.rules import specs
from superscaler.ir.rules.rule import parse_rule

assert op_examples_models
assert op_examples_tensors


def test_every_target_has_an_example() -> None:
    assert sorted(set(specs()) - set(EXAMPLES)) == []


def check_parts(target: str, data: st.DataObject) -> None:
    case: Case = EXAMPLES[target](data.draw, target)
    splits, space = data.draw(splittings(case.rule))
    compare(case, run_split(case, splits, space))


@pytest.mark.parametrize("target", sorted(specs()))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_parts_recombine(target: str, data: st.DataObject) -> None:
    check_parts(target, data)


INTRICATE = ("attention", "convolution", "embedding", "gather", "index", "reshape", "scatter", "norm", "cat", "entropy")


@pytest.mark.slow
@pytest.mark.parametrize("target", [t for t in sorted(specs()) if any(name in t for name in INTRICATE)])
@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_parts_of_intricate_ops_recombine(target: str, data: st.DataObject) -> None:
    check_parts(target, data)


def _lies(case: Case, text: str, linear: tuple[tuple[int, ...], ...] = ()) -> Case:
    """The case with a rule that is not true of its op."""
    ins, outs = [tuple(x.shape) for x in case.inputs], case.outs or []
    case.rule = parse_rule(text, ins, outs, family="lie", linear=linear)
    return case


def _caught(case: Case) -> bool:
    """Whether some splitting of the case gives another result than the whole."""

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, report_multiple_bugs=False)
    @given(data=st.data())
    def search(data: st.DataObject) -> None:
        splits, space = data.draw(splittings(case.rule))
        compare(case, run_split(case, splits, space))

    try:
        search()
    except (AssertionError, RuntimeError):
        return True
    return False


@pytest.mark.parametrize(
    ("target", "shapes", "args", "text", "linear"),
    [
        ("aten.mm.default", [(4, 6), (6, 4)], ("$0", "$1"), "b h, h o -> b o", ((0, 1),)),
        ("aten.cumsum.default", [(4, 6)], ("$0", 1), "b h -> b h", ()),
        ("aten._softmax.default", [(4, 6)], ("$0", 1, False), "b h -> b h", ()),
        ("aten.amax.default", [(4, 6)], ("$0", [1]), "b h -> b", ()),
        ("aten.add.Tensor", [(4, 6), (4, 6)], ("$0", "$1"), "b h, b h -> b h", ((0,),)),
        ("aten.mul.Tensor", [(4, 6), (4, 6)], ("$0", "$1"), "b h, b h -> b h", ((0, 1),)),
        ("aten.relu.default", [(4, 6)], ("$0",), "b h -> b h", ((0,),)),
        ("aten.permute.default", [(4, 4)], ("$0", [1, 0]), "b h -> b h", ()),
        ("aten.flip.default", [(4, 6)], ("$0", [1]), "b h -> b h", ()),
        ("aten.cat.default", [(4, 6), (4, 6)], (["$0", "$1"], 1), "b l, b l -> b (l 2)", ()),
        ("aten.sum.dim_IntList", [(4, 6)], ("$0", [1]), "b h^max -> b", ()),
        ("superscaler.sumsq", [(4, 6)], ("$0",), "b h ->", ((0,),)),
    ],
)
def test_a_wrong_rule_is_caught(
    target: str, shapes: list[tuple[int, ...]], args: tuple[Any, ...], text: str, linear: tuple[tuple[int, ...], ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(-4, 5, shape, generator=generator).double() for shape in shapes]
    case = Case(target, inputs, args, exact=target != "aten._softmax.default")
    assert not _caught(case)
    assert _caught(_lies(case, text, linear))
