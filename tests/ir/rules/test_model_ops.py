"""Every op of real models, executed in parts along each of its dims and in terms of each linear group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from split_harness import Case, compare, execute, run_split, whole_part
from torch import Tensor, nn

from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Axis, Space
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Rule, Split, Splits
from superscaler.trace import trace

transformers = pytest.importorskip("transformers")
Built = tuple[nn.Module, dict[str, Any]]


def _text(build: Callable[[], nn.Module]) -> Built:
    return build(), {
        "input_ids": torch.randint(0, 60, (2, 6)),
        "labels": torch.tensor([[1, 2, -100, 4, 5, 6], [-100, -100, 3, 4, 5, 59]]),
    }


def _image(build: Callable[[], nn.Module]) -> Built:
    return build(), {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([1, 0])}


_SMALL: dict[str, Any] = {
    "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 60,
}  # fmt: skip
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_T5 = {"num_layers": 1, "num_heads": 2, "d_model": 8, "d_kv": 4, "d_ff": 12, "vocab_size": 60}
_SWIN = {"image_size": 16, "patch_size": 2, "depths": [2, 1], "num_heads": [2, 4], "embed_dim": 8, "window_size": 4}
_VIT = {k: v for k, v in _SMALL.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 8}

MODELS: dict[str, Callable[[], Built]] = {
    "gpt2": lambda: _text(
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=1, n_head=4, n_embd=16, vocab_size=60, n_positions=8)
        )
    ),
    "llama": lambda: _text(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GROUPED))),
    "qwen2": lambda: _text(lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_GROUPED))),
    "bert": lambda: _text(lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SMALL))),
    "t5": lambda: _text(
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, **_T5))
    ),
    "mixtral": lambda: _text(
        lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(num_local_experts=3, **_GROUPED))
    ),
    "vit": lambda: _image(lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT))),
    "swin": lambda: _image(lambda: transformers.SwinForImageClassification(transformers.SwinConfig(**_SWIN))),
    "resnet": lambda: _image(
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
        )
    ),
}


@dataclass
class Instance(Case):
    """An op of a graph on the values that it has there."""

    def __init__(self, op: Op, rule: Rule, inputs: list[Tensor], outs: list[tuple[int, ...]]) -> None:
        self.target, self.inputs, self.args, self.outs = op.target, inputs, op.args, outs
        self.exact, self.tolerance, self.op, self.rule = False, 1e-11, op, rule


def _splittings(rule: Rule, inputs: list[Tensor]) -> Iterator[tuple[Splits, Space]]:
    """Each dim in two uneven parts and, where it is long enough, in three; each linear group in two terms."""
    for name, dim in rule.dims.items():
        if dim.whole or dim.size < 2:
            continue
        for sizes in {(1, dim.size - 1), (dim.size - dim.size // 3 * 2, dim.size // 3, dim.size // 3)}:
            if min(sizes) > 0:
                yield (("a", Split(name, dim.size)),), Space((Axis("a", len(sizes), "space", sizes),), ())
    for group in rule.linear:
        if any(inputs[i].dtype == torch.bool for i in group):
            continue  # no sum is ever a boolean
        yield (("a", Split("+", inputs=group)),), Space((Axis("a", 2, "space"),), ())


def _check(graph: Graph, values: dict[str, Tensor]) -> int:
    seen: set[tuple[object, ...]] = set()
    count = 0
    for op in graph.ops:
        rule = rule_for(op, graph)
        inputs = [values[name] for name in op.inputs]
        case = Instance(op, rule, inputs, [graph.tensor[name].shape for name in op.outputs])
        values |= dict(zip(op.outputs, execute(op, rule, inputs, whole_part(case)), strict=True))
        key = (op.target, repr(op.args), *(tuple(x.shape) for x in inputs))
        if key in seen:
            continue
        seen.add(key)
        for splits, space in _splittings(rule, inputs):
            compare(case, run_split(case, splits, space))
            count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_op_of_the_model_splits_exactly(name: str) -> None:
    torch.manual_seed(0)
    model, kwargs = MODELS[name]()
    model.train()
    traced = trace(model, (), kwargs, dtype="f64")
    given = [x.double() if x.is_floating_point() else x for x in kwargs.values()]
    values = {**traced.values(model), **dict(zip(traced.graph.inputs, given, strict=True))}
    assert _check(traced.graph, values) > 100
