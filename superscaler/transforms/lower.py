"""``lower``: a TaskGraph to the blocks of all its stages."""

from __future__ import annotations

from superscaler.ir.task import Placement, TaskGraph
from superscaler.transforms.blocks import FREE, Lowered
from superscaler.transforms.lowering import Lowering
from superscaler.transforms.ordering import check_shared, ordered
from superscaler.transforms.results import finish
from superscaler.transforms.totals import total_over_meshes
from superscaler.transforms.turns import runs, turn_axis


def _when(placed: Placement) -> int:
    """Before, during or after the micro-batches."""
    return 0 if placed.kind in ("per_step", "prologue") else 2 if placed.kind in ("reduce", "optimizer") else 1


def lower(tasks: TaskGraph) -> Lowered:
    """The blocks of all stages. Raises :class:`PlanError` where the plan cannot be carried out."""
    work = Lowering(tasks)
    graph = tasks.graph
    check_shared(tasks)
    ops = sorted(ordered(graph, tasks.sequence), key=lambda op: _when(tasks.placed[op.name]))
    for run in runs([op for op in ops if op.target not in FREE], tasks, work.level):
        op, axis = run[0], turn_axis(run[0], tasks)
        placed = tasks.placed[op.name]
        for stage in placed.stages:
            mesh = tasks.stages[stage]
            body = work.body(work.key_of(op, mesh), placed.over)
            if op.target == "superscaler.add_n" and op.phase == "optimizer":
                total_over_meshes(work, op, placed)
                break
            if axis:
                work.emit_turns(run, axis, body)
            else:
                work.emit(op, body)
            for each in run:
                work.reduce_early(each, body)
    return finish(work)
