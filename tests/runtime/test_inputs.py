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


def test_a_mapping_is_taken_by_its_names_in_any_order() -> None:
    names = entry("source.ids", "source.mask", "target.mask", "target.ids")
    source, target = {"mask": C, "ids": A}, {"mask": A, "ids": C}
    found = gather(names, (source, target), {})
    assert {n: t.tolist() for n, t in found.items()} == {
        "source.ids": [1, 2], "source.mask": [3, 4], "target.mask": [1, 2], "target.ids": [3, 4],
    }  # fmt: skip
    with pytest.raises(InputError, match="no input of idz, mask"):
        gather(names, ({"idz": A, "mask": C}, target), {})


def test_an_input_called_as_a_parameter_is_given_by_its_name() -> None:
    found = gather(entry("a", "input:c", "optimizer:lr"), (A,), {"c": C})
    assert {n: t.tolist() for n, t in found.items()} == {"a": [1, 2], "input:c": [3, 4]}


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
        ((A, C, True), {}, "True, which is no tensor: settings were fixed when the plan was compiled"),
        ((A, C), {"temperature": 0.5}, "temperature is 0.5, which is no tensor: settings were fixed"),
    ],
)
def test_what_does_not_fit_is_named(args: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gather(entry("a", "c"), args, named)


CALL = {"a": "", "scale": "0.5", "mask": "None", "c": "", "tuned": "True"}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((A, C), {}),
        ((A, 0.5, C), {}),
        ((A, 0.5, None, C, True), {}),
        ((A,), {"tuned": True, "c": C, "mask": None, "scale": 0.5}),
    ],
)
def test_settings_may_be_given_as_they_were_compiled(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    found = gather(entry("a", "c"), args, named, CALL)
    assert {n: t.tolist() for n, t in found.items()} == {"a": [1, 2], "c": [3, 4]}


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((A, 0.25, C), {}, "scale is 0.25, the plan was compiled for scale=0.5"),
        ((A, None, C), {}, "scale is None, the plan was compiled for scale=0.5"),
        ((A, C), {"tuned": False}, "tuned is False, the plan was compiled for tuned=True"),
        ((A, C), {"tuned": 1}, "tuned is 1, the plan was compiled for tuned=True"),
        ((A, C), {"tuned": None}, "tuned is None, the plan was compiled for tuned=True"),
        ((A, C), {"mask": 2.0}, "mask is 2.0, the plan was compiled for mask=None"),
        ((A, C), {"mask": A}, "mask is a Tensor, the plan was compiled for mask=None"),
        ((A, C, True, 3), {}, "3, which is no tensor: settings were fixed"),
        ((True, A), {}, "input 'a' is a bool, not a tensor"),
    ],
)
def test_another_setting_is_refused_with_both_values(args: Any, named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gather(entry("a", "c"), args, named, CALL)


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
