"""Example inputs for ops that move elements: views, lookups, creation, random numbers."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from op_examples import Draw, broadcast, example, ints, size, sizes
from split_harness import Case, divisors


def factored(draw: Draw, n: int) -> tuple[int, ...]:
    """A shape of ``n`` elements, with dims of size one here and there."""
    shape: list[int] = []
    while n > 1 and draw(st.booleans() if shape else st.just(True)):
        part = draw(st.sampled_from(divisors(n)))
        shape.append(part)
        n //= part
    return (*shape, n)


@example("superscaler.reshape")
def reshape(draw: Draw, target: str) -> Case:
    n = draw(st.sampled_from([1, 12, 24, 30, 60, 64, 72, 96, 120, 210]))
    left, right = factored(draw, n), factored(draw, n)
    return Case(target, [ints(draw, *left)], ("$0", "#shape"), [right])


@example("superscaler.expand")
def expand(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    return Case(target, [ints(draw, *broadcast(draw, shape))], ("$0", "#shape"), [shape])


@example("aten.permute.default")
def permute(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    return Case(target, [ints(draw, *shape)], ("$0", list(draw(st.permutations(range(len(shape)))))))


@example("superscaler.block")
def block(draw: Draw, target: str) -> Case:
    shape, count = list(sizes(draw)), size(draw, 3)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    out = tuple(shape)
    shape[dim] *= count
    return Case(target, [ints(draw, *shape)], ("$0", dim, draw(st.integers(0, count - 1)), "#local:l"), [out])


@example("superscaler.unblock")
def unblock(draw: Draw, target: str) -> Case:
    shape, count = list(sizes(draw)), size(draw, 3)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    x = ints(draw, *shape)
    return Case(target, [x], ("$0", dim, draw(st.integers(0, count - 1)), count))


def _slice(draw: Draw, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    start = draw(st.integers(-shape[dim], shape[dim] - 1))
    return dim, start, draw(st.sampled_from([2**63 - 1, start % shape[dim] + 2])), draw(st.integers(1, 2))


@example("aten.slice.Tensor", "superscaler.slice_backward", "aten.slice_scatter.default")
def slices(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    args = _slice(draw, shape)
    x = ints(draw, *shape)
    taken = torch.ops.aten.slice.Tensor(x, *args).clone()
    if "backward" in target:
        return Case(target, [taken], ("$0", "#shape", *args), [shape])
    if "scatter" in target:
        return Case(target, [x, taken + 1], ("$0", "$1", *args))
    return Case(target, [x], ("$0", *args))


@example("aten.select.int", "superscaler.select_backward", "aten.select_scatter.default")
def selects(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    index = draw(st.integers(-shape[dim], shape[dim] - 1))
    x = ints(draw, *shape)
    if "backward" in target:
        return Case(target, [x.select(dim, index)], ("$0", "#shape", dim, index), [shape])
    if "scatter" in target:
        return Case(target, [x, x.select(dim, index) + 1], ("$0", "$1", dim, index))
    return Case(target, [x], ("$0", dim, index))


@example("aten.cat.default")
def cat(draw: Draw, target: str) -> Case:
    shape = list(sizes(draw))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    count, equal = size(draw, 3), draw(st.booleans())
    inputs = []
    for _ in range(count):
        shape[dim] = shape[dim] if equal else size(draw)
        inputs.append(ints(draw, *shape))
    return Case(target, inputs, ([f"${i}" for i in range(count)], dim))


@example("aten.stack.default")
def stack(draw: Draw, target: str) -> Case:
    shape, count = sizes(draw), size(draw, 3)
    dim = draw(st.integers(-len(shape) - 1, len(shape)))
    return Case(target, [ints(draw, *shape) for _ in range(count)], ([f"${i}" for i in range(count)], dim))


@example("aten.constant_pad_nd.default")
def pad(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    pads = draw(st.lists(st.integers(0, 2), min_size=2, max_size=2))
    pads += [0, 1] if len(shape) > 1 and draw(st.booleans()) else []
    return Case(target, [ints(draw, *shape)], ("$0", pads, draw(st.sampled_from([0, 0.0, 3]))))


@example("aten.flip.default", "aten.roll.default", "aten.tril.default", "aten.triu.default")
def reorder(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 2)
    dims = sorted(draw(st.sets(st.integers(-len(shape), -1), min_size=1)))
    name = target.split(".")[1]
    args: dict[str, tuple[Any, ...]] = {"flip": (dims,), "roll": ([1] * len(dims), dims), "tril": (1,), "triu": (-1,)}
    rolled_flat = name == "roll" and draw(st.booleans())
    return Case(target, [ints(draw, *shape)], ("$0", *(([2],) if rolled_flat else args[name])))


@example("aten.repeat.default")
def repeat(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 1, 3)
    repeats = [draw(st.integers(1, 3)) for _ in range(len(shape) + draw(st.integers(0, 1)))]
    return Case(target, [ints(draw, *shape)], ("$0", repeats))


@example("aten.repeat_interleave.self_int")
def repeat_interleave(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    return Case(target, [ints(draw, *shape)], ("$0", size(draw, 3), draw(st.integers(-len(shape), len(shape) - 1))))


def ids(draw: Draw, count: int, *shape: int) -> torch.Tensor:
    return ints(draw, *shape, low=0, high=count, dtype=torch.int64)


@example("superscaler.embedding", "superscaler.embedding_backward")
def embedding(draw: Draw, target: str) -> Case:
    v, h, shape = size(draw, 12), size(draw), sizes(draw, 1, 3)
    index = ids(draw, v, *shape)
    padding = draw(st.sampled_from([None, 0]))
    if "backward" in target:
        grad = ints(draw, *shape, h)
        return Case(target, [grad, index], ("$0", "$1", "#local:v", "#start:v", padding), [(v, h)])
    return Case(target, [ints(draw, v, h), index], ("$0", "$1", "#start:v", padding), [(*shape, h)])


def _gather(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = sizes(draw, 1, 3)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    index = [draw(st.sampled_from([n, max(n - 1, 1)])) for n in shape]
    index[dim] = size(draw)
    return shape, tuple(index), dim


@example("aten.gather.default", "superscaler.gather_backward", "aten.scatter_add.default")
def gathers(draw: Draw, target: str) -> Case:
    shape, index_shape, dim = _gather(draw)
    index = ids(draw, shape[dim], *index_shape)
    if "backward" in target:
        return Case(target, [ints(draw, *index_shape), index], ("$0", "$1", "#shape", dim), [shape])
    if "scatter" in target:
        source = tuple(n + draw(st.integers(0, 1)) for n in index_shape)
        return Case(target, [ints(draw, *shape), index, ints(draw, *source)], ("$0", dim, "$1", "$2"))
    return Case(target, [ints(draw, *shape), index], ("$0", dim, "$1"))


@example("aten.scatter.src", "aten.scatter.value")
def scatters(draw: Draw, target: str) -> Case:
    shape, index_shape, dim = _gather(draw)
    fixed = list(index_shape)
    fixed[dim] = min(fixed[dim], shape[dim])
    order = torch.randperm(shape[dim])[: fixed[dim]]  # no element twice: which write wins is not defined
    at = [1] * len(fixed)
    at[dim] = fixed[dim]
    index = order.view(at).expand(fixed).contiguous()
    if target.endswith("value"):
        return Case(target, [ints(draw, *shape), index], ("$0", dim, "$1", 7.0))
    return Case(target, [ints(draw, *shape), index, ints(draw, *fixed)], ("$0", dim, "$1", "$2"))


@example("aten.index_select.default", "aten.index_add.default")
def index_one(draw: Draw, target: str) -> Case:
    shape = list(sizes(draw))
    dim, count = draw(st.integers(-len(shape), len(shape) - 1)), size(draw)
    index = ids(draw, shape[dim], count)
    x = ints(draw, *shape)
    if "select" in target:
        return Case(target, [x, index], ("$0", dim, "$1"))
    shape[dim] = count
    return Case(target, [x, index, ints(draw, *shape)], ("$0", dim, "$1", "$2"))


@example("aten.index.Tensor", "superscaler.index_backward", "aten.index_put.default")
def indexing(draw: Draw, target: str) -> Case:
    shape, lookup = sizes(draw, 1, 4, 4), sizes(draw, 1, 2, 4)
    at = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=2))
    inputs, written, number = [], list[str | None](), 1
    for i in range(max(at) + 1):
        if i not in at:
            written.append(None)
            continue
        written.append(f"${number}")
        inputs.append(ids(draw, shape[i], *(lookup if number == 1 else broadcast(draw, lookup))))
        number += 1
    x = ints(draw, *shape)
    if "index.Tensor" in target:
        return Case(target, [x, *inputs], ("$0", written))
    found = torch.ops.aten.index.Tensor(x, [inputs[int(w[1:]) - 1] if w else None for w in written])
    grad = ints(draw, *found.shape)
    if "backward" in target:
        return Case(target, [grad, *inputs], ("$0", written, "#shape"), [shape])
    values = grad if draw(st.booleans()) else ints(draw)
    return Case(target, [x, *inputs, values], ("$0", written, f"${number}", True))


@example("aten.bucketize.Tensor")
def bucketize(draw: Draw, target: str) -> Case:
    return Case(target, [ints(draw, *sizes(draw)), ints(draw, size(draw)).sort()[0]], ("$0", "$1"))


@example("superscaler.full", "superscaler.arange")
def creation(draw: Draw, target: str) -> Case:
    if "full" in target:
        return Case(target, [], ("#shape", 1.5, "float32"), [sizes(draw, 0)])
    dtype = draw(st.sampled_from(["int64", "float32", "float64"]))
    return Case(target, [], (3, 2, dtype, "#start:n", "#local:n"), [(size(draw, 12),)])


@example("superscaler.dropout", "superscaler.uniform", "superscaler.normal")
def random(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 0)
    if "dropout" in target:
        return Case(target, [ints(draw, *shape)], ("$0", 0.5, "#key", "#seed", "#region"))
    dtype = draw(st.sampled_from(["float32", "float64", "bfloat16"]))
    return Case(target, [], ("#shape", dtype, "#key", "#seed", "#region"), [shape])
