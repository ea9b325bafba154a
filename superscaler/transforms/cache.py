"""Decoding with a cache: attention over the tokens at hand becomes attention over all tokens so far.

A model traced on ``s`` new tokens has causal attention among them. Here each such op appends its keys and values to a
cache, state of the plan, from row ``start`` on, and attends over the rows before and with them. A cache is
[tokens, batch, heads, dim]: what is filled is a prefix of it, so its memory can be mapped as it fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Op, Tensor

ATTENTION, CACHED, APPEND = "superscaler.attention", "superscaler.cached_attention", "superscaler.cache_append"
START = "start"
"""The input that says how many tokens the caches have: a scalar of int64."""


@dataclass
class _Cached:
    """What is added to a graph."""

    tensors: list[Tensor] = field(default_factory=list[Tensor])
    ops: list[Op] = field(default_factory=list[Op])
    updates: dict[str, str] = field(default_factory=dict[str, str])
    dropped: set[str] = field(default_factory=set[str])


def with_cache(graph: Graph, tokens: int) -> Graph:
    """``graph`` with every attention op over a cache of at most ``tokens`` tokens, and the input ``start``.

    Raises :class:`PlanError` for attention that is not causal among the tokens themselves (a mask, a window, an
    encoder), or that is asked for its log-sum-exp: its keys would not be those of a cache.
    """
    new = _Cached([Tensor(START, (), "int64", "input")])
    for op in graph.ops:
        if op.target == ATTENTION:
            new.ops += _cached(graph, op, tokens, new)
        else:
            new.ops.append(op)
    if not new.updates:
        raise PlanError("the model has no attention op, so there is nothing to cache", hint="a decoder of tokens")
    tensors = (*(t for t in graph.tensors if t.name not in new.dropped), *new.tensors)
    return Graph(tensors, tuple(new.ops), (*graph.inputs, START), graph.outputs, {}, {**graph.updates, **new.updates})


def _cached(graph: Graph, op: Op, tokens: int, new: _Cached) -> Iterator[Op]:
    _verify(graph, op)
    query, *given = op.inputs
    filled: list[str] = []
    for name, what in zip(given, ("keys", "values"), strict=True):
        tensor = graph.tensor[name]
        batch, heads, _, dim = tensor.shape
        cache = Tensor(f"{op.name}.{what}", (tokens, batch, heads, dim), tensor.dtype, "cache")
        after = msgspec.structs.replace(cache, name=f"{cache.name}.new", kind="activation")
        new.tensors += [cache, after]
        new.updates[cache.name] = after.name
        filled.append(after.name)
        ins = (cache.name, name, START)
        yield _like(op, f"{op.name}/append_{what}", APPEND, ins, (after.name,), ("$0", "$1", "$2"))
    new.dropped.add(op.outputs[1])
    ins = (query, *filled, START)
    yield _like(op, op.name, CACHED, ins, op.outputs[:1], ("$0", "$1", "$2", "$3", op.args[4]))


def _like(op: Op, name: str, target: str, ins: tuple[str, ...], outs: tuple[str, ...], args: tuple[object, ...]) -> Op:
    return msgspec.structs.replace(op, name=name, target=target, inputs=ins, outputs=outs, args=args)


def _verify(graph: Graph, op: Op) -> None:
    why = _obstacle(graph, op)
    if why:
        raise PlanError(
            f"{op.name} cannot decode with a cache: {why}", op.where,
            hint="causal self-attention without a mask or window",
        )  # fmt: skip


def _obstacle(graph: Graph, op: Op) -> str | None:
    if len(op.inputs) != 3:
        return "it has a mask"
    queries, keys = (graph.tensor[name].shape[2] for name in op.inputs[:2])
    causal, dropout = op.args[3], op.args[5]
    if queries != keys:
        return f"{queries} queries attend to {keys} keys"
    if not causal and queries > 1:
        return "a token attends to those that follow it"
    if dropout:
        return "it has dropout"
    used = graph.consumers[op.outputs[1]] or op.outputs[1] in graph.outputs.values()
    return "its log-sum-exp is used" if used else None
