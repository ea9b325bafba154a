"""Where a model is cut: runs of its forward ops, or of its layers, of about equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from superscaler.errors import PlanError
from superscaler.ir.argument import whole
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Space
from superscaler.ir.rules import rule_for
from superscaler.scheduler.cost import op_seconds, operations, slept
from superscaler.transforms.blocks import layer_of


def weight(op: Op, graph: Graph) -> float:
    """What an op weighs when the model is cut: its operations, and the bytes that it touches."""
    if op.target.startswith("superscaler.sleep"):
        return 1e12 * slept(op, graph)
    rule = rule_for(op, graph)
    size = sum(graph.tensor[n].bytes for n in (*op.inputs, *op.outputs))
    return operations(op, rule) + (0.0 if rule.family == "view" else 4.0 * size)


def speeds(graph: Graph, forward: Sequence[Op], cluster: Cluster, groups: Sequence[Sequence[int]]) -> list[float]:
    """How fast the slowest device of each group runs ``forward``; 1 is the fastest of all."""
    kinds = {cluster.devices[device] for group in groups for device in group}
    if len(kinds) == 1:
        return [1.0] * len(groups)
    seconds = {
        kind: sum(op_seconds(op, graph, (), Space((), ()), cluster.kinds[kind]) for op in forward) for kind in kinds
    }
    slowest = [max(seconds[cluster.devices[device]] for device in group) for group in groups]
    return [min(slowest) / time for time in slowest]


def layer_runs(graph: Graph, forward: Sequence[Op], count: int) -> list[list[Op]]:
    """``forward`` in ``count`` runs of layers of about equal cost; a layer that runs again is in one run.

    Ops of no submodule go where what they read last is made. Raises :class:`PlanError` for more runs than layers.
    """
    layers: dict[str, list[Op]] = {}
    for op in forward:
        if op.module:
            layers.setdefault(layer_of(op.module), []).append(op)
    if not 1 <= whole(count, "stages") <= len(layers):
        raise PlanError(
            f"the model has {len(layers)} layers, which cannot be cut into {count} stages",
            hint=f"1 to {len(layers)} stages",
        )
    groups, costs = list(layers.values()), [sum(weight(op, graph) for op in ops) for ops in layers.values()]
    runs: list[list[Op]] = [[] for _ in range(count)]
    total, before, stage = sum(costs), 0.0, 0
    for i, (group, cost) in enumerate(zip(groups, costs, strict=True)):
        full = runs[stage] and before + cost / 2 > total * (stage + 1) / count
        if stage < count - 1 and (full or len(groups) - i <= count - 1 - stage):
            stage += 1
        runs[stage] += group
        before += cost
    stage_of = {op.name: i for i, run in enumerate(runs) for op in run}
    for op in forward:
        if op.name not in stage_of:
            makers = [graph.producer[n].name for n in op.inputs if n in graph.producer]
            stage_of[op.name] = max((stage_of.get(m, 0) for m in makers), default=0)
            runs[stage_of[op.name]].append(op)
    return runs


def in_layers(ops: Sequence[Op]) -> list[list[Op]]:
    """Runs of ops of the same layer."""
    runs: list[tuple[str, list[Op]]] = []
    for op in ops:
        key = layer_of(op.module)
        if runs and runs[-1][0] == key:
            runs[-1][1].append(op)
        else:
            runs.append((key, [op]))
    return [run for _, run in runs]
