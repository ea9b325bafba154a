"""Draft -> Graph: gradient terms gathered, dead ops dropped, forward/backward links found, names given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from superscaler.ir.graph import Graph, Op, Tensor
from superscaler.trace.draft import VIEWS, Draft, DraftOp, Value

ADD_N = "superscaler.add_n"
_PRODUCTS = ("aten.mm.default", "aten.bmm.default")


def gather_terms(ops: list[DraftOp], roots: Iterable[Value]) -> list[DraftOp]:
    """Chains of accumulation adds become one ``add_n`` of all terms: each is added in place, and reduced once."""
    uses = Counter(id(value) for op in ops for value in op.inputs)
    uses.update(id(value) for value in roots)
    for op in ops:
        if op.target != ADD_N:
            continue
        terms: list[Value] = []
        for value in op.inputs:
            inner = value.op
            terms.extend(inner.inputs if inner and inner.target == ADD_N and uses[id(value)] == 1 else (value,))
        op.inputs = tuple(terms)
        op.args = tuple(f"${k}" for k in range(len(terms)))
    return ops


def live(ops: list[DraftOp], roots: Iterable[Value]) -> list[DraftOp]:
    """The ops that the roots depend on, in order."""
    needed = {id(value.op) for value in roots if value.op is not None}
    kept: list[DraftOp] = []
    for op in reversed(ops):
        if id(op) in needed:
            kept.append(op)
            needed.update(id(value.op) for value in op.inputs if value.op is not None)
    return kept[::-1]


def link_of(op: DraftOp, by_seq: dict[Any, list[DraftOp]], kept: set[int]) -> DraftOp | None:
    """The forward op whose gradient ``op`` helps to compute."""
    if op.twin is not None:
        return op.twin
    if op.origin.phase == "forward" or op.origin.seq is None:
        return None
    found = [f for f in by_seq.get(op.origin.seq, ()) if id(f) in kept and f.origin.phase == "forward"]
    if op.target in _PRODUCTS or op.target in VIEWS:
        found = [f for f in found if f.target in _PRODUCTS] or found
    return found[-1] if found else None


class Namer:
    """Gives names that tell where a thing stands, and none twice."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._next: Counter[str] = Counter()

    def name(self, op: DraftOp) -> str:
        """``layers.3.mlp/mm``; ``layers.3.mlp/backward.mm`` in the backward; numbered from the second on."""
        kind = op.target.split(".")[1]
        base = f"backward.{kind}" if op.origin.phase == "backward" else kind
        base = f"{op.origin.module}/{base}" if op.origin.module else base
        while True:
            number = self._next[base]
            self._next[base] += 1
            name = f"{base}_{number}" if number else base
            if name not in self._taken:
                self._taken.add(name)
                return name


def finish(draft: Draft) -> Graph:
    """The Graph of a draft."""
    roots = draft.roots()
    ops = live(gather_terms(draft.builder.ops, roots), roots)
    kept = {id(op) for op in ops}
    namer = Namer(value.name for value, _ in draft.given)
    names = {id(op): namer.name(op) for op in ops}
    tensors = {id(value): Tensor(value.name, value.shape, value.dtype, kind) for value, kind in draft.given}
    for op in ops:
        tensors.update(_outputs(op, names[id(op)]))

    def name(value: Value) -> str:
        return tensors[id(value)].name

    def write(op: DraftOp) -> Op:
        link = link_of(op, draft.by_seq, kept)
        origin = op.origin
        return Op(
            names[id(op)],
            op.target,
            tuple(map(name, op.inputs)),
            tuple(map(name, op.outputs)),
            op.args,
            origin.phase,
            origin.module,
            origin.function,
            origin.source,
            names.get(id(link)) if link is not None else None,
        )

    return Graph(
        tuple(tensors.values()),
        tuple(map(write, ops)),
        tuple(value.name for value, kind in draft.given if kind == "input"),
        {role: name(value) for role, value in draft.outputs.items()},
        {role: name(value) for role, value in draft.gradients.items()},
        {role: name(value) for role, value in draft.updates.items()},
    )


def _outputs(op: DraftOp, name: str) -> dict[int, Tensor]:
    several = len(op.outputs) > 1
    return {
        id(value): Tensor(f"{name}:{i}" if several else name, value.shape, value.dtype)
        for i, value in enumerate(op.outputs)
    }
