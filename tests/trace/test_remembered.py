"""A forward that remembers something in plain Python is refused, for a step is traced once; caches are none of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superscaler.errors import TraceError
from superscaler.trace import trace


class Part(nn.Module):
    """Plain attributes of every kind, and a forward that may change them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.run = nn.Linear(4, 4), forward
        self.calls, self.average, self.phase, self.fresh = 0, 0.0, "even", True
        self.longest, self.history, self.table = 0, list[Any](), dict[Any, Any]()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Model(nn.Module):
    """Several parts, as a model has layers."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part(forward) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x.mean()


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.linear(x) / m.calls


def averages(m: Any, x: Tensor) -> Tensor:
    m.average = 0.9 * m.average + 0.1
    return m.linear(x) * m.average


def alternates(m: Any, x: Tensor) -> Tensor:
    m.phase = "odd" if m.phase == "even" else "even"
    return m.linear(x)


def collects(m: Any, x: Tensor) -> Tensor:
    m.history.append(m.linear(x).detach())
    return m.linear(x)


def tallies(m: Any, x: Tensor) -> Tensor:
    m.table["calls"] = m.table.get("calls", 0) + 1
    return m.linear(x)


def starts(m: Any, x: Tensor) -> Tensor:
    if m.fresh:
        x = x - x.mean()
        m.fresh = False
    return m.linear(x)


LINES = {
    counts: ("every forward", "m.calls += 1"),
    averages: ("every forward", "m.average = "),
    alternates: ("every forward", "m.phase = "),
    collects: ("every forward", "m.history.append("),
    tallies: ("every forward", 'm.table["calls"] = '),
    starts: ("the first forward", "m.fresh = False"),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("forward", LINES, ids=lambda f: f.__name__)
def test_what_one_forward_leaves_to_the_next_is_refused(forward: Any, mode: Any) -> None:
    when, line = LINES[forward]
    model, tracer = Model(forward), sys.gettrace()
    with pytest.raises(TraceError, match=rf"parts\.0\.\w+ is changed by {when}") as caught:
        trace(model, (torch.randn(4, 4),), mode=mode)
    assert line in str(caught.value)
    assert "try: " in str(caught.value)
    assert (model.parts[0].calls, model.parts[0].history) == (0, []), "the model is left as it was"
    assert sys.gettrace() is tracer


def lengths(m: Any, x: Tensor) -> Tensor:
    if len(x) > m.longest:
        m.longest = len(x)
        m.table[len(x)] = torch.arange(len(x), dtype=x.dtype)
    return m.linear(x) * m.table[len(x)][:, None]


def losses(m: Any, x: Tensor) -> Tensor:
    m.history = []
    m.history.append(x.square())
    return m.linear(x) + sum(m.history)


def emptied(m: Any, x: Tensor) -> Tensor:
    m.history.append(x)
    return m.linear(m.history.pop())


@pytest.mark.parametrize("forward", [lengths, losses, emptied], ids=lambda f: f.__name__)
def test_what_every_forward_sets_anew_is_no_memory(forward: Any) -> None:
    assert trace(Model(forward), (torch.randn(4, 4),)).graph.gradients


def test_a_model_that_has_run_once_may_have_had_a_first_time() -> None:
    model = Model(starts)
    model(torch.randn(4, 4))
    assert trace(model, (torch.randn(4, 4),)).graph.gradients
