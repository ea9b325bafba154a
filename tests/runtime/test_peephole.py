"""What normalisation took apart is one kernel again."""

from __future__ import annotations

import torch

from superscaler.runtime.peephole import ADDMM, fused
from superscaler.runtime.resolve import Line

F64 = torch.float64


def product() -> Line:
    return Line("aten.mm.default", ("$0", "$1"), (0, 1), (3,), ((4, 6),))


def add(*ins: int) -> Line:
    return Line("aten.add.Tensor", ("$0", "$1"), ins, (4,), ((4, 6),))


SHAPES = {0: (4, 5), 1: (5, 6), 2: (6,), 3: (4, 6), 4: (4, 6)}


def test_product_and_bias_become_addmm_in_either_order() -> None:
    for line in (add(3, 2), add(2, 3)):
        (found,) = fused([product(), line], SHAPES, keep=frozenset({4}))
        assert (found.target, found.ins, found.outs) == (ADDMM, (2, 0, 1), (4,))


def test_a_product_that_others_read_stays() -> None:
    other = Line("aten.relu.default", ("$0",), (3,), (5,), ((4, 6),))
    assert len(fused([product(), add(3, 2), other], SHAPES, keep=frozenset())) == 3
    assert len(fused([product(), add(3, 2)], SHAPES, keep=frozenset({3}))) == 2


def test_an_addend_of_full_shape_is_no_bias() -> None:
    assert len(fused([product(), add(3, 2)], {**SHAPES, 2: (4, 6)}, keep=frozenset())) == 2
    assert len(fused([product(), add(3, 2)], {**SHAPES, 2: (4, 1)}, keep=frozenset())) == 2
