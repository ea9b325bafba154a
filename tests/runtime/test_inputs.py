"""Inputs that do not fit are named before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import small_plans as plans
import torch

from superscaler.errors import InputError, UsageError
from superscaler.ir.graph import Graph, Tensor
from superscaler.ir.plan import Entry
from superscaler.runtime.inputs import Cutter, driven, gather


def entry(*names: str) -> Entry:
    """An entry with inputs of two elements each."""
    tensors = tuple(Tensor(n, (2,), "int64", "input") for n in names)
    return Entry(Graph(tensors, (), names, {}), (), (), (), (), plans.CERTIFICATE)


A, C = torch.tensor([1, 2]), torch.tensor([3, 4])


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((A, C), {}),
        ((A,), {"c": C}),
        ((), {"c": C, "a": A}),
        (({"a": A}, [C]), {}),
        ((A, None, C), {}),
        ((A, C), {"mask": None}),
    ],
)
def test_positional_named_and_nested(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    found = gather(entry("a", "c"), args, named)
    assert {n: t.tolist() for n, t in found.items()} == {"a": [1, 2], "c": [3, 4]}


def test_nested_names() -> None:
    found = gather(entry("batch.ids", "batch.labels"), (), {"batch": {"labels": C, "ids": A}})
    assert {n: t.tolist() for n, t in found.items()} == {"batch.ids": [1, 2], "batch.labels": [3, 4]}


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((A,), {}, "input 'c' was not given"),
        ((A, C, A), {}, "3 inputs were given, the plan has 2"),
        ((A, C), {"c": C}, "input 'c' was given twice"),
        ((A,), {"cc": C}, "no input 'cc'"),
        ((A, torch.tensor([1])), {}, r"input 'c' has shape \(1,\), the plan was compiled for \(2,\)"),
        ((A, C.int()), {}, "input 'c' has dtype int32, the plan was compiled for int64"),
        ((A, 3), {}, "input 'c' is a int, not a tensor"),
        ((A, C, True), {}, "True is no tensor: settings were fixed when the plan was compiled"),
        ((A, C), {"temperature": 0.5}, "0.5 is no tensor: settings were fixed"),
    ],
)
def test_what_does_not_fit_is_named(args: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gather(entry("a", "c"), args, named)


def test_each_worker_takes_its_own_part_and_equal_parts_are_one_object() -> None:
    plan = plans.tensor_parallel()
    x = plans.batch()
    first, second = Cutter(plan, plan.entries["train"]).cut({"x": x, "lr": torch.tensor(0.1)})
    assert first["x"] is second["x"]
    assert torch.equal(first["x"], x)
    staged = plans.pipelined()
    first, second = Cutter(staged, staged.entries["train"]).cut({"x": x, "lr": torch.tensor(0.1)})
    assert set(first) == {"x", "lr"}
    assert set(second) == {"lr"}


def test_the_job_gives_rate_and_step() -> None:
    made = driven(plans.whole().entries["train"], lr=0.5, step=3)
    assert made["lr"].item() == 0.5
    assert set(made) == {"lr"}
    with pytest.raises(UsageError, match="learning rate"):
        driven(plans.whole().entries["train"], lr=None, step=3)
