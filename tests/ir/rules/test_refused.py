"""Ops that are none, as an edited graph may hold them: refused with what to try."""

from __future__ import annotations

import pytest

from superscaler.errors import SplitError
from superscaler.ir.graph import Graph, Op, Tensor
from superscaler.ir.rules import rule_for

OPS = {
    "blocks that do not fill the dim": Op("b", "superscaler.block", ("x",), ("y",), ("$0", 0, 0, "#local:l")),
    "an index that is no tensor": Op("i", "aten.index.Tensor", ("x",), ("y",), ("$0", [1.5])),
}


@pytest.mark.parametrize("what", OPS)
def test_it_says_what_to_try(what: str) -> None:
    tensors = (Tensor("x", (7,), "float32", "input"), Tensor("y", (2,), "float32"))
    graph = Graph(tensors, (OPS[what],), ("x",), {"loss": "y"})
    with pytest.raises(SplitError) as refused:
        rule_for(OPS[what], graph)
    assert "try: " in str(refused.value)
