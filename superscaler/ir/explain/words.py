"""Layouts, splits and kinds of task in words."""

from __future__ import annotations

from collections.abc import Iterator

from superscaler.ir.check.fault import workers_text
from superscaler.ir.entry import Entry
from superscaler.ir.explain.explanation import shortened
from superscaler.ir.graph import ITEMSIZE, Graph, Op
from superscaler.ir.layout import Layout, Partial, Shard, Space
from superscaler.ir.region import Region
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Split, Splits
from superscaler.ir.summary import bytes_text

KINDS = {
    "prologue": "once, before the micro-batches and over the whole batch: no parameter is involved",
    "per_step": "once a step: it depends on parameters only",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "weight": "apart from the backward pass: only the optimizer waits for it, so it may fill idle time",
    "recompute": "computed again for the backward pass, not kept",
    "reduce": "once, after the micro-batches: it needs all of them",
    "optimizer": "in the optimizer's step",
}


def layout_words(layout: Layout, space: Space) -> str:
    """How a tensor lies, axis by axis."""
    found: list[str] = []
    for axis, state in layout.states:
        ways = space.axis(axis).ways
        if isinstance(state, Partial):
            found.append(f"as {ways} terms of a {state.kind} along {axis!r}")
        else:
            digit = f" (digit {state})" if state.inner != 1 else ""
            found.append(f"dim {state.dim} in {ways} parts along {axis!r}{digit}")
    return ", ".join(found) or "whole"


def holders(layout: Layout, shape: tuple[int, ...], dtype: str, space: Space, *, most: int = 8) -> list[str]:
    """Which workers hold which region, a line for each region."""
    mesh = space.mesh(layout.mesh)
    spatial = Layout(layout.mesh, tuple((a, s) for a, s in layout.states if space.axis(a).kind == "space"))
    by_region: dict[tuple[Region, tuple[tuple[str, int], ...]], list[int]] = {}
    for worker in mesh.devices:
        coords = mesh.coords(worker)
        terms = tuple((a, coords[a]) for a, s in spatial.states if isinstance(s, Partial))
        by_region.setdefault((space.region(shape, spatial, coords), terms), []).append(worker)
    lines = [
        f"{workers_text(tuple(sorted(workers)))}: {region if shape else 'the number'}"
        f" ({bytes_text(region.volume * ITEMSIZE[dtype])} each)"
        + "".join(f", term {index} along {axis!r}" for axis, index in terms)
        for (region, terms), workers in by_region.items()
    ]
    return shortened(lines, most, "regions")


WHY = {
    "s": "as the plan says",
    "w": "as the plan prefers",
    "f": "following what it reads or what reads it",
    "c": "which moves the fewest bytes",
}


def split_words(op: Op, entry: Entry, splits: Splits, axes: tuple[str, ...], space: Space) -> list[str]:
    """Per axis of its mesh and per time axis: how an op is split, why that is allowed, and what chose it."""
    graph, said = entry.graph, dict(splits)
    number = graph.ops.index(op)
    chosen = {axis: WHY[letters[number]] for axis, letters in entry.reasons.items() if letters[number] in WHY}
    return [
        line + (f", {chosen[axis]}" if axis in chosen else "")
        for axis, line in _split_lines(op, graph, said, axes, space)
    ]


def _split_lines(
    op: Op, graph: Graph, said: dict[str, Split], axes: tuple[str, ...], space: Space
) -> Iterator[tuple[str, str]]:
    rule = rule_for(op, graph)
    for axis in (*axes, *(a for a in said if a not in axes)):
        ways, split = space.axis(axis).ways, said.get(axis)
        if ways == 1:
            continue
        if split is None:
            free = [n for n, d in rule.dims.items() if not d.whole and d.size >= ways]
            why = "" if free else f": no dim of {rule} can be split {ways} ways"
            yield axis, f"along {axis!r}: every part computes all of it{why}"
        elif split.passes:
            yield axis, f"along {axis!r}: the {ways} terms of a sum pass through, it being linear in them"
        else:
            dim = rule.dims[split.dim]
            reduced = any(not _has(out, split.dim) for out in rule.outs)
            gives = f", which leaves terms of a {dim.reduce}" if reduced else ""
            yield axis, f"along {axis!r}: its dim {split.dim!r} of {dim.size} in {ways} parts{gives}"


def _has(operand: tuple[tuple[str | int, ...], ...], dim: str) -> bool:
    return any(dim in factors for factors in operand)


def named(op: Op) -> str:
    """An op with what it was in the source."""
    what = op.function or op.target
    return f"{op.name} ({what}{' at ' + op.source if op.source else ''})"


__all__ = ["KINDS", "Shard", "holders", "layout_words", "named", "split_words"]
