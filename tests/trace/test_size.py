"""Models of any size are traced on fake tensors: nothing of their size is allocated."""

from __future__ import annotations

import resource

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from superscaler import models
from superscaler.ir.graph import Graph
from superscaler.trace import trace


def traced(preset: str, **settings: object) -> Graph:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, _ = models.build("gpt", preset, **settings)
        ids = torch.zeros((1536, 2048), dtype=torch.long)
    return trace(model, (ids, ids)).graph


def test_wide_layers_cost_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = traced("gpt3-175b", layers=2)
    assert sum(t.bytes for t in graph.tensors if t.kind == "parameter") > 15e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
    assert not any(t.shape[-2:] == (2048, 2048) for t in graph.tensors), "no mask"


def test_equal_layers_are_equal() -> None:
    graph = traced("gpt3-175b", layers=3)

    def layer(index: int) -> list[tuple[object, ...]]:
        own = f"blocks.{index}."
        return [
            (op.target, op.args, op.phase, op.function, op.source, tuple(graph.tensor[i].shape for i in op.inputs))
            for op in graph.ops
            if op.module.startswith(own)
        ]

    assert layer(0) == layer(1) == layer(2)


def test_inputs_may_be_real_beside_a_fake_model() -> None:
    with FakeTensorMode():
        model, _ = models.build("gpt", "tiny")
    ids = torch.zeros((2, 8), dtype=torch.long)
    assert trace(model, (ids, ids)).graph.tensor["ids"].shape == (2, 8)


@pytest.mark.slow
def test_gpt3_175b() -> None:
    graph = traced("gpt3-175b")
    assert 8_000 < len(graph.ops) < 9_000
    assert sum(t.numel for t in graph.tensors if t.kind == "parameter") > 174e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1_200_000  # KB, with torch and the tests themselves
