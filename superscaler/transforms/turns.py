"""Turns: runs of ops that are split over time on their device, part after part (co-shard)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from superscaler.ir.graph import Op
from superscaler.ir.layout import State
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import split_state
from superscaler.ir.task import TaskGraph
from superscaler.transforms.blocks import FREE


def turn_axis(op: Op, tasks: TaskGraph) -> str:
    """The time axis, other than the micro-batches', over which an op is split, or ""."""
    for axis, _ in tasks.placed[op.name].splits:
        if axis != tasks.microaxis and tasks.space.axis(axis).kind == "time" and tasks.space.axis(axis).ways > 1:
            return axis
    return ""


def runs(ops: list[Op], tasks: TaskGraph, level: Mapping[str, int]) -> Iterator[list[Op]]:
    """Ops one by one; those of a block that are split over the same turns together. ``level``: of each op's block.

    An op of the block that is not, and that reads nothing of a run of turns, goes before it, so that the run goes on.
    """
    run: list[Op] = []
    for op in ops:
        axis = turn_axis(op, tasks)
        made = {out for each in run for out in each.outputs}
        beside = bool(run) and _block(op, tasks, level) == _block(run[0], tasks, level)
        if beside and axis == turn_axis(run[0], tasks) and not _reads_whole(op, axis, made, tasks):
            run.append(op)
            continue
        if beside and not axis and not any(_comes_from(name, made, tasks) for name in op.inputs):
            yield [op]
            continue
        if run:
            yield run
        run = [op] if axis else []
        if not axis:
            yield [op]
    if run:
        yield run


def _comes_from(tensor: str, made: set[str], tasks: TaskGraph) -> bool:
    """Whether a tensor is one of ``made``, or a view of one."""
    if tensor in made:
        return True
    producer = tasks.graph.producer.get(tensor)
    if producer is None or producer.target not in FREE:
        return False
    return any(_comes_from(name, made, tasks) for name in producer.inputs)


def along(op: Op, axis: str, tasks: TaskGraph, *, output: bool, index: int) -> State | None:
    """The state along an axis of an op's input or output number ``index``."""
    split = next((s for a, s in tasks.placed[op.name].splits if a == axis), None)
    return split_state(rule_for(op, tasks.graph), split, output=output, index=index) if split is not None else None


def _reads_whole(op: Op, axis: str, made: set[str], tasks: TaskGraph) -> bool:
    """Whether an op reads otherwise than turn by turn, views apart, what a run of turns is still making."""

    def reads(tensor: str, need: State | None) -> bool:
        producer = tasks.graph.producer.get(tensor)
        if producer is None or (tensor not in made and producer.target not in FREE):
            return False
        have = along(producer, axis, tasks, output=True, index=producer.outputs.index(tensor))
        if tensor in made:
            return need != have
        return any(
            reads(name, along(producer, axis, tasks, output=False, index=i) if need == have else None)
            for i, name in enumerate(producer.inputs)
        )

    return any(reads(name, along(op, axis, tasks, output=False, index=i)) for i, name in enumerate(op.inputs))


def _block(op: Op, tasks: TaskGraph, level: Mapping[str, int]) -> tuple[object, ...]:
    placed = tasks.placed[op.name]
    return placed.kind, placed.stages, placed.over, level[op.name]
