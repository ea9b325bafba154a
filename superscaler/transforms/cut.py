"""Cutting the forward ops into stages of equal cost where little crosses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Op
from superscaler.transforms.blocks import layer_of

NEAR = 1.25
"""How much costlier than the least the costliest stage may be, for less to cross between stages."""
EVEN = 1.01
"""And for stages to end where layers do."""


def cut(
    graph: Graph, ops: Sequence[Op], count: int, cost: Callable[[Op], float], speeds: Sequence[float] = ()
) -> list[list[Op]]:
    """``ops`` (in order) in ``count`` consecutive runs, the costliest as cheap as possible.

    ``speeds``: what the cost of each run is divided by; by default 1. Cuts are made only where the bytes that cross are
    at a local minimum, and where layers end if that costs no more. Raises :class:`PlanError` if there are fewer such
    places than cuts.
    """
    if count < 1:
        raise PlanError(f"a pipeline needs at least one stage, not {count}", hint="one stage: no pipeline")
    if count == 1:
        return [list(ops)]
    crossing = crossing_bytes(graph, ops)
    places = [
        i
        for i in range(1, len(ops))
        if crossing[i] <= crossing[i - 1] and crossing[i] <= crossing[min(i + 1, len(ops) - 1)]
    ]
    costs = [cost(op) for op in ops]
    places = _distinct(places, crossing, costs)
    if len(places) < count - 1:
        raise PlanError(
            f"the model cannot be cut into {count} stages: it has {len(places)} places to cut",
            hint=f"at most {len(places) + 1} stages",
        )
    prefix = [0.0, *accumulate(costs)]
    borders = {i for i in places if layer_of(ops[i - 1].module) != layer_of(ops[i].module)}
    edges = [0, *_narrow(places, borders, crossing, prefix, speeds or (1.0,) * count), len(ops)]
    return [list(ops[a:b]) for a, b in pairwise(edges)]


def crossing_bytes(graph: Graph, ops: Sequence[Op]) -> list[int]:
    """For each position, the bytes made before it by ``ops`` and read at or after it by them."""
    position = {op.name: i for i, op in enumerate(ops)}
    change = [0] * (len(ops) + 2)
    for i, op in enumerate(ops):
        for name in op.outputs:
            readers = [position[c.name] for c in graph.consumers[name] if c.name in position]
            if readers and max(readers) > i:
                change[i + 1] += graph.tensor[name].bytes
                change[max(readers) + 1] -= graph.tensor[name].bytes
    total, crossing = 0, list[int]()
    for delta in change[: len(ops) + 1]:
        total += delta
        crossing.append(total)
    return crossing


def _distinct(places: list[int], crossing: list[int], costs: Sequence[float]) -> list[int]:
    """Of equal places with nothing but views between them only the first."""
    return [
        i
        for k, i in enumerate(places)
        if not (k and places[k - 1] == i - 1 and crossing[i] == crossing[i - 1] and costs[i - 1] == 0)
    ]


def _narrow(
    places: list[int], borders: set[int], crossing: list[int], prefix: list[float], speeds: Sequence[float]
) -> list[int]:
    """The places to cut at: as narrow as can be with the costliest stage near the least that it can be."""
    found: list[tuple[float, list[int]]] = []
    for width in sorted({crossing[i] for i in places}):
        narrow = [i for i in places if crossing[i] <= width]
        if len(narrow) >= len(speeds) - 1:
            found.append(_even([i for i in narrow if i in borders], _best(narrow, prefix, speeds), prefix, speeds))
            if found[-1][0] <= NEAR * prefix[-1] / sum(speeds):
                break
    least = min(cost for cost, _ in found)
    return next(cuts for cost, cuts in found if cost <= NEAR * least)


def _even(
    borders: list[int], best: tuple[float, list[int]], prefix: list[float], speeds: Sequence[float]
) -> tuple[float, list[int]]:
    """The best cuts, or those between layers if they are hardly worse."""
    tidy = _best(borders, prefix, speeds) if len(borders) >= len(speeds) - 1 else best
    return tidy if tidy[0] <= EVEN * best[0] else best


def _best(places: list[int], prefix: list[float], speeds: Sequence[float]) -> tuple[float, list[int]]:
    """The places, one less than ``speeds``, that make the costliest run cheapest (dynamic programming); its cost."""
    first, *inner, last = speeds
    best: list[tuple[float, list[int]]] = [(prefix[i] / first, [i]) for i in places]
    for speed in inner:
        longer: list[tuple[float, list[int]]] = []
        for k, i in enumerate(places):
            found = [(max(c, (prefix[i] - prefix[p[-1]]) / speed), p) for c, p in best[:k] if p]
            least = min(found, key=lambda e: e[0], default=(float("inf"), list[int]()))
            longer.append((least[0], [*least[1], i] if least[1] else []))
        best = longer
    total = prefix[-1]
    final = [(max(c, (total - prefix[p[-1]]) / last), p) for c, p in best if p]
    return min(final, key=lambda e: e[0])
