"""Rules of ops that no table names, found by executing them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.errors import SplitError
from superscaler.ir.graph import Op
from superscaler.ir.rules import discovered, has_rule, rule_for
from superscaler.ir.rules.rule import Rule
from superscaler.trace import trace
from superscaler.transforms.discover import discover, discover_missing, search


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path))


Shapes = list[tuple[int, ...]]


def found(function: Callable[..., Any], ins: Shapes, outs: Shapes, *args: Any, dtypes: list[str] | None = None) -> Rule:
    given = args or tuple(f"${i}" for i in range(len(ins)))
    op = Op("op", "tests.unknown", tuple(f"x{i}" for i in range(len(ins))), ("y",), given)
    return search(op, tuple(ins), tuple(outs), dtypes or ["float32"] * len(ins), function)


@pytest.mark.parametrize(
    ("function", "ins", "outs", "rule", "linear"),
    [
        (torch.mm, [(512, 512), (512, 512)], [(512, 512)], "a b, b c -> a c", ((0,), (1,))),
        (torch.mm, [(3, 7), (7, 5)], [(3, 5)], "a b, b c -> a c", ((0,), (1,))),
        (torch.add, [(6, 8), (8,)], [(6, 8)], "a b, b -> a b", ((0, 1),)),
        (torch.mul, [(6, 8), (6, 8)], [(6, 8)], "a b, a b -> a b", ((0,), (1,))),
        (torch.relu, [(64, 128)], [(64, 128)], "a b -> a b", ()),
        (lambda x: x.softmax(-1), [(6, 8)], [(6, 8)], "a x0_1! -> a y0_1!", ()),
        (lambda x: x.cumsum(0), [(6, 8)], [(6, 8)], "x0_0! a -> y0_0! a", ((0,),)),
        (lambda x: x.sum(-1), [(6, 8)], [(6,)], "a b -> a", ((0,),)),
        (lambda x: x.amax(0), [(6, 8)], [(8,)], "a^max b -> b", ()),
        (lambda x: x.amin((0, 1)), [(6, 8)], [()], "a^min b^min -> ", ()),
        (lambda x: x.mT, [(4, 6, 8)], [(4, 8, 6)], "a b c -> a c b", ((0,),)),
        (lambda x: x.flip(1), [(6, 8)], [(6, 8)], "a x0_1! -> a y0_1!", ((0,),)),
        (lambda q, k: torch.einsum("bshd,bthd->bhst", q, k), [(2, 6, 3, 4), (2, 5, 3, 4)], [(2, 3, 6, 5)],
         "a b c d, a e c d -> a c b e", ((0,), (1,))),
        (lambda x: (x.sum(0), x * 2), [(6, 8)], [(8,), (6, 8)], "a b -> b, a b", ((0,),)),
        (lambda x: x[:, 1:], [(6, 8)], [(6, 7)], "a x0_1! -> a y0_1!", ((0,),)),
        (lambda x: x.sum(0) * x.amax(), [(6, 8)], [(8,)], "x0_0! x0_1! -> y0_0!", ()),
        (lambda x: x.sum(0).amax(0), [(6, 8)], [()], "a b -> ", ()),
    ],
)  # fmt: skip
def test_what_is_found(
    function: Callable[..., Any], ins: Shapes, outs: Shapes, rule: str, linear: tuple[tuple[int, ...], ...]
) -> None:
    got = found(function, ins, outs)
    if rule == "a b -> ":  # a maximum of sums: one of the two can be cut, but not both
        assert str(got) in ("a x0_1! -> ", "x0_0! a^max -> ")
        return
    assert str(got) == rule
    assert got.linear == linear
    assert got.discovered


def test_lookups_by_integers() -> None:
    got = found(lambda w, i: F.embedding(i, w), [(50, 8), (6, 4)], [(6, 4, 8)], dtypes=["float32", "int64"])
    assert str(got) == "x0_0! a, b c -> b c a"
    assert got.linear == ((0,),)


def test_sizes_baked_into_arguments_keep_their_dims_whole() -> None:
    got = found(lambda x, shape: x.reshape(shape), [(6, 8)], [(6, 2, 4)], "$0", [6, 2, 4])
    assert not any(not dim.whole for dim in got.dims.values())


def test_a_dim_whose_length_tells_how_many_results_there_are_is_whole() -> None:
    rule = found(lambda x, n: x.split(n, 1), [(6, 8)], [(6, 2)] * 4, "$0", 2)
    assert str(rule).startswith("a x0_1! -> a y0_1!, a y1_1!")


def test_a_rule_of_small_shapes_serves_large_ones() -> None:
    got = found(torch.mm, [(49152, 12288), (12288, 50257)], [(49152, 50257)])
    assert {name: dim.size for name, dim in got.dims.items()} == {"a": 49152, "b": 12288, "c": 50257}


def _inplace(x: Tensor) -> Tensor:
    return x.add_(1)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [(_inplace, "changes its inputs"), (lambda x: torch.rand_like(x), "another result each time")],
)
def test_ops_with_side_effects_are_refused(function: Callable[..., Any], complaint: str) -> None:
    with pytest.raises(SplitError, match=complaint):
        found(function, [(6, 8)], [(6, 8)])


def test_ops_that_do_not_run_are_refused_with_their_reason() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("only runs on Tuesdays")

    with pytest.raises(SplitError, match="only runs on Tuesdays"):
        found(broken, [(6, 8)], [(6, 8)])


@pytest.mark.parametrize("target", ["aten.relu_.default", "aten.bernoulli.default", "aten.nonzero.default", "no.such"])
def test_ops_that_must_not_be_executed_are_refused(target: str) -> None:
    with pytest.raises(SplitError):
        discover(Op("op", target, ("x",), ("y",), ("$0",)), ((4, 6),), ((4, 6),), ["float32"])


def test_ops_without_inputs_are_not_executed() -> None:
    op = Op("op", "aten.from_file.default", (), ("y",), ("/tmp/never", True, 4))
    with pytest.raises(SplitError, match="no tensor inputs"):
        discover(op, (), ((4,),), [])


@pytest.fixture
def unknown_op() -> Iterator[Any]:
    library = torch.library.Library("discover_tests", "DEF")
    library.define("mix(Tensor x, Tensor w) -> Tensor")
    library.impl("mix", lambda x, w: torch.tanh(x) @ w, "CompositeExplicitAutograd")
    yield torch.ops.discover_tests.mix
    library._destroy()


def test_an_unknown_op_in_a_model_is_discovered_once_and_kept(unknown_op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.randn(8, 4))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (unknown_op(x, self.w) * self.scale).sum()

    graph = trace(Model(), (torch.randn(6, 8),)).graph
    assert not has_rule("discover_tests.mix")
    assert discover_missing(graph) == ("discover_tests.mix",)
    op = next(o for o in graph.ops if o.target == "discover_tests.mix")
    rule = rule_for(op, graph)
    assert (str(rule), rule.discovered, rule.linear) == ("a b, b c -> a c", True, ((1,),))
    monkeypatch.setattr("superscaler.transforms.discover.lookup.search", None)  # the cache answers now
    assert discover_missing(graph) == ("discover_tests.mix",)


def test_another_version_is_discovered_anew(unknown_op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("op", "discover_tests.mix", ("x", "w"), ("y",), ("$0", "$1"))
    ins, outs = ((6, 8), (8, 4)), ((6, 4),)
    discover(op, ins, outs, ["float32"] * 2)
    monkeypatch.setattr(torch, "__version__", "99.0")
    discover(op, ins, outs, ["float32"] * 2)
    record = discovered.record("discover_tests.mix")
    assert record is not None
    assert record.version.startswith("torch 99.0")
    assert len(record.rules) == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"target": "other.op", "version": "1"}', b"\x80\x04K\x01."])
def test_a_broken_cache_file_counts_as_none(content: bytes) -> None:
    path = discovered.cache_dir() / "rules" / "some.op.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert not discovered.known("some.op")


@pytest.mark.parametrize("target", ["../../etc/passwd", "a/b.c", "", "op"])
def test_targets_do_not_escape_the_cache(target: str) -> None:
    assert discovered.record(target) is None


def test_an_op_that_crashes_on_parts_is_kept_whole_there() -> None:
    """Cutting the first input alone kills the process: that is no dim; the other input's is still found."""

    def fragile(x: Tensor, y: Tensor) -> Tensor:
        if x.shape[0] != 6:
            os.abort()
        return x.sum() * y

    got = found(fragile, [(6,), (8,)], [(8,)])
    assert str(got) == "x0_0!, a -> a"


def test_an_op_that_always_crashes_is_refused() -> None:
    with pytest.raises(SplitError, match="ends the process"):
        found(lambda x: os.abort(), [(6, 8)], [(6, 8)])


def test_an_op_that_hangs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superscaler.transforms.discover.lookup._SECONDS", 0.3)
    with pytest.raises(SplitError, match="cannot be executed") as error:
        found(lambda x: time.sleep(60), [(6, 8)], [(6, 8)])
    assert "more than 0.3 s" in str(error.value)
