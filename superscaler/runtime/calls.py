"""Calls and sums as lines of code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.program import Accumulate, At, Call, Definition
from superscaler.runtime.body import Outputs
from superscaler.runtime.resolve import Resolved
from superscaler.runtime.storage import at_of, reads, writes
from superscaler.runtime.updates import InPlace, in_place
from superscaler.runtime.writer import Writer


def write_call(w: Writer, i: int, call: Call) -> None:
    """``results = body(inputs, parameters, seed, storage)``."""
    definition = w.binding.entry.definitions[call.definition]
    updates = in_place(w.binding.program, w.context.users, w.block, i, w.binding.entry.definitions)
    sums = _sums(w, i, call)
    uses = _uses(w, call, updates, sums)
    resolve = _resolver(w, call, definition)
    args = [w.out.entry(_body_of(w, call, resolve, uses, sums))]
    args += [w.var(v, call.at) for v in call.ins]
    if _parametrised(definition):
        args.append("*" + w.out.entry(lambda j: resolve(j).bindings))
    if _draws(definition):
        args.append("seed")
    given = {p: w.var(call.outs[p], call.at) for p in uses.stored}
    given |= {p: w.var(_sum(w, k).into, call.at) for p, k in sums.items()}
    args += [given[p] for p in sorted(given)]
    w.alias.update(updates.state)
    w.absorbed.update(sums.values())
    kept = [v for p, v in enumerate(call.outs) if p not in given]
    targets = ["_" if v in updates.state else w.var(v, call.at) for v in kept]
    assignment = f"{', '.join(targets)} = " if any(t != "_" for t in targets) else ""
    w.out.line(f"{assignment}{args[0]}({', '.join(args[1:])})")


def _resolver(w: Writer, call: Call, definition: Definition) -> Callable[[int], Resolved]:
    resolved: dict[int, Resolved] = {}

    def resolve(j: int) -> Resolved:
        if j not in resolved:
            coords = w.binding.coords(call.mesh, w.times(call.at, j))
            resolved[j] = w.context.resolver.call(definition, call, coords)
        return resolved[j]

    return resolve


def _body_of(
    w: Writer, call: Call, resolve: Callable[[int], Resolved], uses: Outputs, sums: Mapping[int, int]
) -> Callable[[int], Callable[..., Any]]:
    """Which body each instance calls: one that begins the sums, or one that adds to them."""
    into = {p: _sum(w, k).into for p, k in sums.items()}

    def body(j: int) -> Callable[..., Any]:
        begun = {p: w.begins(k, j) for p, k in sums.items()}
        stored = (*uses.stored, *(p for p, first in begun.items() if first))
        added = tuple(p for p, first in begun.items() if not first)
        return w.context.body(call, resolve(j), replace(uses, stored=stored, added=added), into)

    return body


def _sum(w: Writer, step: int) -> Accumulate:
    found = w.block.steps[step]
    assert isinstance(found, Accumulate)
    return found


def _sums(w: Writer, i: int, call: Call) -> dict[int, int]:
    """Outputs, by position, that the body itself adds to a sum in the arena: the number of the step that says so.

    Nobody else reads such an output, and nothing between touches the sum.
    """
    found: dict[int, int] = {}
    for p, value in enumerate(call.outs):
        readers = [k for k, s in enumerate(w.block.steps) if value in reads(s) and at_of(s) == call.at]
        if w.place(value) != "local" or len(readers) != 1 or readers[0] < i:
            continue
        step = w.block.steps[readers[0]]
        if not isinstance(step, Accumulate) or w.place(step.into) != "arena":
            continue
        between = w.block.steps[i : readers[0]]
        if not any(step.into in (*reads(s), *writes(s)) for s in between):
            found[p] = readers[0]
    taken = [_sum(w, k).into for k in found.values()]
    return {p: k for p, k in found.items() if taken.count(_sum(w, k).into) == 1}


def _uses(w: Writer, call: Call, updates: InPlace, sums: Mapping[int, int]) -> Outputs:
    stored: list[int] = []
    owned: list[int] = []
    for p, value in enumerate(call.outs):
        if value in updates.state or p in sums:
            continue
        if w.place(value) == "arena":
            stored.append(p)
        elif w.place(value) == "held" or _stolen(w, value, call.at):
            owned.append(p)
    return Outputs(tuple(stored), (), tuple(owned), updates.rows)


def _stolen(w: Writer, value: int, at: At) -> bool:
    """Whether a local result may become the start of a sum: its only reader is the Accumulate that takes it."""
    readers = [s for s in w.block.steps if value in reads(s) and at_of(s) == at]
    if w.place(value) != "local" or len(readers) != 1 or not isinstance(readers[0], Accumulate):
        return False
    into = readers[0].into
    return w.place(into) != "arena" and w.binding.dtype(into) == w.binding.dtype(value)


def write_accumulate(w: Writer, i: int, step: Accumulate) -> None:
    """``into = add(into, src)``, or whatever begins the sum."""
    if i in w.absorbed:
        return
    into, src = w.var(step.into, step.at), w.var(step.src, step.at)
    made = any(isinstance(s, Call) and step.src in s.outs for s in w.block.steps)
    begin = _beginning(w, step, stolen=made and _stolen(w, step.src, step.at))
    if w.place(step.into) == "local":
        begun = into in w.begun
        w.begun.add(into)
        add = _add if begun else begin
        w.out.line(f"{into} = {w.out.entry(lambda j: add)}({into if begun else 'None'}, {src})")
    else:
        target = "_" if w.place(step.into) == "arena" else into
        entry = w.out.entry(lambda j: begin if w.begins(i, j) else _add)
        w.out.line(f"{target} = {entry}({into}, {src})")


def _beginning(w: Writer, step: Accumulate, *, stolen: bool) -> Callable[[Any, Tensor], Tensor]:
    if w.place(step.into) == "arena":
        return _store
    dtype = w.binding.dtype(step.into)
    return _take if stolen else lambda _, src: src.to(dtype, memory_format=torch.contiguous_format, copy=True)


def _add(into: Tensor, src: Tensor) -> Tensor:
    return into.add_(src)


def _store(into: Tensor, src: Tensor) -> Tensor:
    return into.copy_(src)


def _take(_: Any, src: Tensor) -> Tensor:
    return src


def _placeholders(args: Any) -> set[str]:
    if isinstance(args, str):
        return {args.partition(":")[0]}
    if isinstance(args, dict):
        return _placeholders(tuple(args["kw"].values()))
    return set[str]().union(*map(_placeholders, args)) if isinstance(args, list | tuple) else set()


def _parametrised(definition: Definition) -> bool:
    return any(_placeholders(row.args) & {"#start", "#region", "#key"} for row in definition.rows)


def _draws(definition: Definition) -> bool:
    return any("#seed" in _placeholders(row.args) for row in definition.rows)
