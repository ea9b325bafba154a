"""What callers from Python hand over: lists and numbers of any integer type are taken, the rest is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.errors import ScheduleError, UsageError


class Seven:
    """An integer of another type, as numpy's are."""

    def __index__(self) -> int:
        return 7


def problem(**said: Any) -> ss.PipelineProblem:
    options: dict[str, Any] = {"stages": 4, "microbatches": 8, **said}
    return ss.PipelineProblem(**options)


def test_lists_and_other_integers_are_as_good_as_tuples() -> None:
    made = problem(forward=[7, Seven(), 7, 7], max_activations=[4, None, 4, 4], speed=[1, 1, 2, 2])
    assert made == problem(forward=(7, 7, 7, 7), max_activations=(4, None, 4, 4), speed=(1, 1, 2, 2))
    assert hash(made) == hash(problem(forward=(7, 7, 7, 7), max_activations=(4, None, 4, 4), speed=(1, 1, 2, 2)))
    assert type(problem(comm=Seven()).comm) is int


@pytest.mark.parametrize("value", ["8", 8.0, math.nan, None, True, b"8", object()])
@pytest.mark.parametrize("name", ["stages", "microbatches", "comm", "forward", "weight", "speed", "devices"])
def test_no_integer(name: str, value: object) -> None:
    if (name, value) == ("devices", None):
        return
    with pytest.raises(UsageError, match=rf"{name}\S* must be") as caught:
        problem(**{name: value})
    assert caught.value.hint is not None


@pytest.mark.parametrize(("said", "message"), [
    ({"forward": [10, 10, 1.5, 10]}, r"forward\[2\] must be a whole number, not 1.5"),
    ({"forward": []}, "0 entries for 4 stages"),
    ({"max_activations": [4, "4", 4, 4]}, r"max_activations\[1\] must be a whole number, not '4'"),
    ({"max_activations": [None, 4, 0, 4]}, "max_activations of device 2 is 0"),
    ({"max_activations": [4, 4]}, "2 entries for 4 devices"),
])  # fmt: skip
def test_one_of_several(said: dict[str, object], message: str) -> None:
    with pytest.raises((ScheduleError, UsageError), match=message) as caught:
        problem(**said)
    assert caught.value.hint is not None


@pytest.mark.parametrize("said", [{"order": None}, {"order": 3}, {"time_limit": "1"}, {"time_limit": math.nan}])
def test_senseless_choices(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ss.schedule(problem(), **said)


@pytest.mark.parametrize("time_limit", ["1", math.nan, -1, 10**400])
def test_no_limit_of_time_for_a_plan(time_limit: Any) -> None:
    model, args = nn.Linear(2, 2), (torch.ones(4, 2),)
    with pytest.raises(UsageError, match="time limit"):
        ss.compile(model, args, loss=torch.sum, cluster=ss.Cluster.local(1), time_limit=time_limit)


@pytest.mark.parametrize("seed", ["0", 0.5, None])
def test_a_seed_is_an_integer(seed: Any) -> None:
    with pytest.raises(UsageError, match="seed must be"):
        ss.schedule(problem(), seed=seed)


@pytest.mark.parametrize("placement", [None, 3, "w"])
def test_no_placement(placement: Any) -> None:
    with pytest.raises(UsageError, match="no placement"):
        problem(placement=placement)
