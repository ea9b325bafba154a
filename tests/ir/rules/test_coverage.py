"""At least 99 % of the op instances of the models of every family have a split rule, by hand or discovered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from superscaler.api import coverage
from superscaler.ir.graph import Graph, Op
from superscaler.ir.graph import Tensor as Logical
from superscaler.ir.rules.coverage import coverage as covered
from tests.cases import slow
from tests.families import FAMILIES, LARGE, family


@pytest.mark.parametrize("name", [slow(f) if f in LARGE else f for f in FAMILIES])
def test_families(name: str) -> None:
    case = family(name, 2)
    found = coverage(case.model, case.args, case.kwargs, loss=case.loss)
    assert found.share >= 0.99, str(found)
    assert found.split >= 0.9 * found.instances, str(found)


class Triangle(nn.Module):
    """Has an op that the table lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j1(x * 2).detach().mul(self.weight).sum()


def test_what_discovery_finds_counts(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path))
    found = coverage(Triangle(), (torch.rand(3, 4),))
    assert found.discovered == 1
    assert not found.missing


def test_what_has_no_rule_is_named() -> None:
    tensors = (Logical("x", (2,), "float32", "input"), Logical("y", (2,), "float32"), Logical("z", (2,), "float32"))
    ops = (Op("a", "aten.neg.default", ("x",), ("y",), ("$0",)), Op("b", "aten.nothing.default", ("y",), ("z",)))
    found = covered(Graph(tensors, ops, ("x",), {"z": "z"}))
    assert (found.share, found.missing) == (0.5, {"aten.nothing.default": 1})
    assert "no rule: aten.nothing.default, 1 times" in str(found)
