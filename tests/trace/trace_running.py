"""Runs a whole Graph op by op with the functions of the runtime, and compares it with plain torch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from superscaler.ir.graph import Graph
from superscaler.ir.layout import Space
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.part import part_of_op
from superscaler.runtime.ops import execute
from superscaler.trace import Traced, trace
from superscaler.trace.promote import Float64Mode

ONE_PART = Space((), ())


def run(graph: Graph, state: dict[str, Tensor], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every tensor of ``graph`` by name."""
    values = {**state, **dict(zip(graph.inputs, inputs, strict=True))}
    for op in graph.ops:
        rule = rule_for(op, graph)
        part = part_of_op(rule, op, (), ONE_PART, {}, graph.tensor[op.outputs[0]].shape)
        results = execute(op, rule, [values[name] for name in op.inputs], part)
        for name, result in zip(op.outputs, results, strict=True):
            told = graph.tensor[name]
            assert (tuple(result.shape), str(result.dtype)) == (told.shape, f"torch.{told.dtype}"), (op, result.shape)
            values[name] = result
    return values


def plain(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], loss: Callable[[Any], Tensor], *, train: bool = True
) -> tuple[Tensor, dict[str, Tensor], nn.Module]:
    """Loss and gradients of the model in plain torch, in float64 throughout, and the model after it."""
    reference = copy.deepcopy(model).double().train(train)
    for module in reference.modules():
        vars(module).update({n: double(v) for n, v in vars(module).items() if isinstance(v, Tensor)})
    with Float64Mode():
        value = loss(reference(*map(double, args), **{k: double(v) for k, v in kwargs.items()}))
        value.backward()
    gradients = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    return value.detach(), gradients, reference


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def loss_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.loss


def assert_same_as_torch(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    train: bool = True,
    tolerance: float = 1e-9,
) -> Traced:
    """The traced graph gives the loss, gradients and buffers of plain torch: DESIGN §6."""
    kwargs = kwargs or {}
    model.train(train)
    traced = trace(model, args, kwargs, loss=loss, dtype="f64", mode="train")
    traced.graph.verify()
    placed = [value for value in args if isinstance(value, Tensor)]  # what is given by name follows
    given = [double(value) for value in [*placed, *(kwargs[name] for name in traced.graph.inputs[len(placed) :])]]
    values = run(traced.graph, traced.values(model), given)
    expected, gradients, reference = plain(model, args, kwargs, loss or loss_of)
    found = values[traced.graph.outputs["loss"]]
    assert abs(found - expected) <= tolerance * abs(expected), (found, expected)
    everything = sum(g.norm() ** 2 for g in gradients.values()) ** 0.5
    first = {name: names[0] for names in traced.state.values() for name in names}
    assert {first[name] for name in gradients} == set(traced.graph.gradients)
    for name, gradient in gradients.items():
        ours = values[traced.graph.gradients[first[name]]]
        bound = tolerance * max(gradient.norm(), 1e-6 * float(everything), 1e-15)  # all may be zero to rounding
        assert (ours - gradient).norm() <= bound, (name, (ours - gradient).norm(), bound)
    buffers = dict(reference.named_buffers())
    changed = {n for n, b in model.named_buffers() if not torch.equal(double(b), buffers[n])}
    assert changed <= set(traced.graph.updates), changed
    for name, update in traced.graph.updates.items():
        assert torch.allclose(values[update], buffers[name], rtol=tolerance, atol=tolerance), name
    return traced
