"""Every op says where it comes from: module, function, line, and the forward op of a backward op."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from superscaler import models
from superscaler.ir.graph import Graph, Op
from superscaler.trace import trace


def gpt() -> Graph:
    model, inputs = models.build("gpt", "tiny")
    return trace(model, inputs(2)).graph


def test_module_and_function() -> None:
    graph = gpt()
    assert graph.op["blocks.1.mlp.up/mm"].module == "blocks.1.mlp.up"
    assert graph.op["blocks.1.mlp.up/mm"].function == "linear"
    functions = {op.function for op in graph.ops if op.module.startswith("blocks.0")}
    assert {"linear", "layer_norm", "attention", "gelu"} <= functions
    assert {"embedding", "cross_entropy"} <= {op.function for op in graph.ops}


def test_source_is_the_users_line() -> None:
    (attention,) = (op for op in gpt().ops if op.name == "blocks.0.attention/attention")
    file, _, line = attention.source.rpartition(":")
    assert file.endswith("superscaler/models/gpt.py")
    text = Path(file).read_text().splitlines()[int(line) - 1]
    assert "scaled_dot_product_attention" in text


def test_backward_ops_link_to_their_forward() -> None:
    graph = gpt()
    for op in graph.ops:
        if op.phase == "forward":
            assert op.link is None
        elif op.link is not None:
            assert graph.op[op.link].phase == "forward"
        if op.name.startswith("blocks.0.mlp.down/backward.mm"):
            assert op.link == "blocks.0.mlp.down/mm"
            assert op.module == "blocks.0.mlp.down"


def test_every_backward_op_of_a_layer_is_in_that_layer() -> None:
    graph = gpt()
    layers = {op.name: op.module.split(".")[1] for op in graph.ops if op.module.startswith("blocks.")}
    order = [layers[op.name] for op in graph.ops if op.phase == "backward" and op.name in layers]
    assert order == sorted(order, reverse=True)


def test_gradient_terms_are_one_sum_with_the_last_producer() -> None:
    graph = gpt()
    (last,) = (op for op in graph.ops if op.outputs == (graph.gradients["embedding.weight"],))
    assert last.target == "superscaler.add_n"
    producers = [graph.producer[name] for name in last.inputs]
    assert [op.module for op in producers] == ["head", "embedding"]
    assert last.module == "embedding"
    into_norm = graph.op["blocks.0.attention.query/backward.add_n"]
    assert len(into_norm.inputs) == 3, "query, key and value: three terms, not two sums"


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x))).mean()


def test_a_module_used_twice_has_one_path_and_ops_of_different_names() -> None:
    graph = trace(Twice(), (torch.randn(3, 4),)).graph
    products = [op for op in graph.ops if op.target == "aten.mm.default" and op.phase == "forward"]
    assert [op.name for op in products] == ["layer/mm", "layer/mm_1"]
    assert {op.module for op in products} == {"layer"}


def ops_of(graph: Graph, target: str) -> list[Op]:
    return [op for op in graph.ops if op.target == target]


def test_views_of_weights_are_shared_and_undone() -> None:
    graph = gpt()
    weights = {t.name for t in graph.tensors if t.kind == "parameter"}
    permuted = [op.inputs[0] for op in ops_of(graph, "aten.permute.default") if op.inputs[0] in weights]
    assert len(permuted) == len(set(permuted)), "one transpose of each weight; the backward reads the weight itself"


def test_nothing_is_dead() -> None:
    graph = gpt()
    wanted = {*graph.outputs.values(), *graph.gradients.values()}
    assert all(any(graph.consumers[out] or out in wanted for out in op.outputs) for op in graph.ops)
