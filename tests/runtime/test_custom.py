"""Users' own ops: one op in the graph, a plain function on a worker, a rule that is tested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superscaler.errors import SplitError, TraceError, UsageError
from superscaler.ir.graph import Graph
from superscaler.ir.rules import has_rule, rule_for, specs
from superscaler.runtime import custom
from superscaler.runtime.custom import op
from superscaler.runtime.ops import function
from superscaler.trace import trace
from superscaler.transforms.discover import verify_custom


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = set(specs())
    yield
    for target in set(specs()) - before:
        del specs()[target]


def scores(rule: str = "b h s d, b h t d -> b h s t", **settings: Any) -> custom.CustomOp:
    @op(rule, name="tests::scores", **settings)
    def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
        return q @ k.mT * scale

    @scores.backward
    def _(grad: Tensor, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return grad @ k * scale, grad.mT @ q * scale

    return scores


class Scorer(nn.Module):
    def __init__(self, scores: custom.CustomOp) -> None:
        super().__init__()
        self.scores = scores
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k))
        return self.scores(q, k, 0.5).square().mean()


def _graph(scores: custom.CustomOp) -> Graph:
    return trace(Scorer(scores), (torch.randn(3, 5, 8),)).graph


def test_it_computes_and_differentiates() -> None:
    found = scores()
    q, k = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = found(q, k, 0.5)
    assert torch.equal(out, q @ k.mT * 0.5)
    assert torch.autograd.gradcheck(lambda q, k: found(q, k, 0.5), (q, k))


def test_it_is_one_op_of_the_graph_with_the_rule_it_states() -> None:
    graph = _graph(scores(linear=[(0,), (1,)]))
    rules = {o.target: rule_for(o, graph) for o in graph.ops if o.target.startswith("tests.")}
    assert {target: str(rule) for target, rule in rules.items()} == {
        "tests.scores": "b h s d, b h t d -> b h s t",
        "tests.scores_backward": "b h s t, b h s d, b h t d -> b h s d, b h t d",
    }
    assert rules["tests.scores"].linear == ((0,), (1,))
    assert rules["tests.scores_backward"].linear == ((0,),)
    verify_custom(graph)


def test_a_worker_runs_the_plain_function() -> None:
    found = scores()
    assert function("tests.scores") is found.function


class Through(nn.Module):
    """A linear layer, then an op of the user's."""

    def __init__(self, op: custom.CustomOp) -> None:
        super().__init__()
        self.op, self.inner = op, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.inner(x)).sum()


CALLS = [0]


def normalized(x: Tensor) -> Tensor:
    return x / x.sum(0, keepdim=True)


def by_the_data(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x * 1


def changing(x: Tensor) -> Tensor:
    x.add_(1)
    return x * 2


def counting(x: Tensor) -> Tensor:
    CALLS[0] += 1
    return x * CALLS[0]


def drawing(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def itself(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (normalized, "is not what the op does: parts of dim 'b'"),
        (by_the_data, "is not what the op does"),
        (changing, "changes its inputs"),
        (counting, "gives another result each time"),
        (drawing, "gives another result each time"),
        (itself, "cannot be executed to test the rule that it states"),
    ],
)
def test_ops_that_are_not_what_they_say(function: Any, complaint: str) -> None:
    """Each says that all its dims can be split; it is executed, and the user's line is named."""
    made = op("b i -> b i", name=f"tests::{function.__name__}")(function)
    made.backward(lambda grad, x: grad * 1)
    with pytest.raises(SplitError) as refused:
        verify_custom(trace(Through(made), (torch.randn(4, 4),)).graph)
    assert complaint in str(refused.value)
    assert "test_custom.py" in str(refused.value)


def test_a_backward_that_lies_is_found() -> None:
    def twice(x: Tensor) -> Tensor:
        return x * 2

    made = op("b i -> b i", name="tests::twice")(twice)
    made.backward(lambda grad, x: grad.sum(0, keepdim=True).expand_as(x) * 2)
    with pytest.raises(SplitError, match=r"tests\.twice_backward is not what the op does"):
        verify_custom(trace(Through(made), (torch.randn(4, 4),)).graph)


def test_a_signature_without_types_is_refused() -> None:
    with pytest.raises(UsageError, match="says too little"):
        op("b i -> b i", name="tests::untyped")(lambda x: x)


def test_an_op_without_a_backward_says_what_to_write() -> None:
    def thrice(x: Tensor) -> Tensor:
        return x * 3

    made = op("b i -> b i", name="tests::thrice")(thrice)
    with pytest.raises(TraceError, match="has no backward") as refused:
        trace(Through(made), (torch.randn(4, 4),))
    assert "@NAME.backward" in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "linear", "complaint"),
    [
        ("b h s d, b h s d -> b h s s2!", [], "parts of dim 's'"),
        ("b h s d, b h t d^max -> b h s t", [], "parts of dim 'd'"),
        ("b h s d, b h t d -> b h s t", [(0, 1)], "not linear in its inputs (0, 1)"),
    ],
)
def test_a_rule_that_lies_is_found(rule: str, linear: list[tuple[int, ...]], complaint: str) -> None:
    found = scores(rule, linear=linear, fake=lambda q, k, scale: q.new_empty((*q.shape[:3], k.shape[2])))
    with pytest.raises(SplitError, match=r"is not what the op does") as error:
        verify_custom(_graph(found))
    assert complaint in str(error.value)


def test_a_softmax_that_says_it_can_be_split_is_found() -> None:
    @op("b h -> b h", name="tests::softmax")
    def softmax(x: Tensor) -> Tensor:
        return x.softmax(-1)

    @softmax.backward(rule="b h, b h -> b h")
    def _(grad: Tensor, x: Tensor) -> Tensor:
        y = x.softmax(-1)
        return y * (grad - (y * grad).sum(-1, keepdim=True))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return (softmax(self.weight) * x).sum()

    with pytest.raises(SplitError, match=r"tests\.softmax is not what the op does: parts of dim 'h'"):
        verify_custom(trace(Model(), (torch.randn(4, 6),)).graph)


def test_dims_that_are_not_sums_are_whole_in_the_gradient() -> None:
    @op("b h^max -> b", name="tests::largest")
    def largest(x: Tensor) -> Tensor:
        return x.amax(-1)

    @largest.backward
    def _(grad: Tensor, x: Tensor) -> Tensor:
        return grad.unsqueeze(-1) * (x == x.amax(-1, keepdim=True))

    assert specs()["tests.largest_backward"][1].rule == "b, b h! -> b h!"


def test_results_whose_size_the_rule_does_not_tell_need_a_fake() -> None:
    @op("b h -> b k!", name="tests::padded")
    def padded(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1))

    with torch._subclasses.FakeTensorMode() as fake, pytest.raises(SplitError, match="size of dim 'k'"):
        padded(fake.from_tensor(torch.randn(2, 3)))


@pytest.mark.parametrize("rule", ["b h -> b h", "b h, b h", "a, b, c -> a"])
def test_a_rule_must_fit_the_signature(rule: str) -> None:
    with pytest.raises(UsageError):
        scores(rule)


def test_ops_with_a_rule_of_the_table_are_not_overridden() -> None:
    with pytest.raises(SplitError, match="has a rule already"):
        custom.adopt({"aten.mm.default": custom.Exported("b h, h o -> b o", (), torch.mm)})


def test_workers_adopt_what_they_are_sent() -> None:
    scores()
    sent = custom.exported(["tests.scores", "aten.mm.default"])
    assert list(sent) == ["tests.scores"]
    del specs()["tests.scores"]
    assert not has_rule("tests.scores")
    custom.adopt(sent)
    assert function("tests.scores") is sent["tests.scores"].function
