"""Graphs and Programs print, and what was printed reads back as what it was."""

from __future__ import annotations

import pytest

from superscaler.errors import UsageError
from superscaler.ir.graph import Graph, Op, Tensor
from superscaler.ir.parsing import parse_graph, parse_program
from tests.ir.plans_by_hand import in_one_piece, network, tensor_parallel
from tests.ir.plans_by_hand_more import BY_HAND, pipelined

PLANS = [in_one_piece, tensor_parallel, *BY_HAND]


@pytest.mark.parametrize("make", PLANS, ids=lambda make: make.__name__)
def test_programs_read_back(make) -> None:  # type: ignore[no-untyped-def]
    for entry in make().entries.values():
        for program in entry.programs:
            assert parse_program(str(program)) == program


@pytest.mark.parametrize("make", PLANS, ids=lambda make: make.__name__)
def test_graphs_read_back(make) -> None:  # type: ignore[no-untyped-def]
    """All but the order in which tensors are listed."""
    for entry in make().entries.values():
        graph = entry.graph
        again = parse_graph(str(graph))
        assert str(again) == str(graph)
        assert set(again.tensors) == set(graph.tensors)
        assert (again.ops, again.inputs) == (graph.ops, graph.inputs)
        assert (again.outputs, again.gradients, again.updates) == (graph.outputs, graph.gradients, graph.updates)


def test_names_and_arguments_of_any_kind() -> None:
    tensors = (Tensor("a b", (2,), "float32", "input"), Tensor('x: "y" = (z)', (), "float32"))
    args = ("$0", float("-inf"), [1, None, "# }"])
    ins, outs = ("a b",), ('x: "y" = (z)',)
    op = Op("op # 1", "aten.add.Scalar", ins, outs, args, "backward", source="file (1).py:3", link="öp")
    graph = Graph(tensors, (op,), ("a b",), {"the loss": 'x: "y" = (z)'})
    assert parse_graph(str(graph)) == graph


def test_a_graph_as_text() -> None:
    lines = str(network()).splitlines()
    assert "  parameter w1: float32[4, 6]" in lines
    assert '  h: float32[8, 6] = aten.mm.default("$0","$1") of x, w1  # {"name":"h"}' in lines
    assert "  update w1 = w1n" in lines


def test_a_program_as_text() -> None:
    lines = str(pipelined().entries["train"].programs[0]).splitlines()
    assert lines[0] == "program of workers 0"
    assert "  %3 = x as m0{micro=S0(2/4)} over micro" in lines
    assert "    send %5 route 0 comm 0" in lines
    assert "  run 1.0 at 0..0" in lines


def test_what_is_no_program_is_told_by_its_line() -> None:
    text = str(pipelined().entries["train"].programs[0]).replace("send %5 route 0", "send %5 by post")
    with pytest.raises(UsageError, match="no line of a program") as caught:
        parse_program(text)
    assert "send %5 by post comm 0" in str(caught.value)
    assert "try: what str() of a program gives" in str(caught.value)
