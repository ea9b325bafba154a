"""From what a plan script said to the directives that placing takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod

from superscaler.errors import PlanError, UsageError, did_you_mean
from superscaler.ir.graph import Op
from superscaler.ir.layout import Shard
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Split
from superscaler.plans.assignment import WHOLE, Factor, Place, runs
from superscaler.plans.record import Record, digit_of
from superscaler.plans.view import GraphView, Stage
from superscaler.scheduler.constructive import schedules
from superscaler.transforms.directives import Directives, StageSpec


def directives(view: GraphView, stages: Sequence[Stage], record: Record) -> Directives:
    """What the plan said, in the form that placing takes. Raises :class:`PlanError` for what does not add up."""
    said = Directives([], microbatches=record.microbatches, order=record.order)
    said.recompute = frozenset(record.recompute)
    said.before, said.sequence = tuple(record.before), tuple(record.sequence)
    apart = record.order == "solve" or schedules()[record.order].weight_apart
    said.split_weight = apart and not record.turns
    said.anchors, said.wishes = list(record.anchors), record.wishes
    said.stages = _stage_specs(view, stages, record, said)
    _used_axes(record, {axis for stage in said.stages for axis in stage.axes})
    said.axes = dict(record.axes)
    said.turns = {axis: frozenset(ops) for axis, ops in record.turns.items()}
    said.sharded, said.early = record.sharded, frozenset(record.early)
    said.offloaded = frozenset(record.offloaded)
    _batch_homes(view, record, said)
    return said


def _stage_specs(view: GraphView, stages: Sequence[Stage], record: Record, said: Directives) -> list[StageSpec]:
    """The stages with their devices, each cut where ops of it are assigned elsewhere."""
    where: dict[str, Place] = {}
    for op, place, factors in record.assigned.factors():
        if where.setdefault(op.name, place) != place:
            raise PlanError(
                f"{op.name} is assigned to {list(where[op.name].devices)} and to {list(place.devices)}",
                hint="assign it once",
            )
        for axis in place.axes:
            record.declare(axis, int(axis.partition("_")[2]))
        said.anchors += _anchors_of(record, op, factors)
    used = {d for place in (*where.values(), *record.assigned.stages.values()) for d in place.devices}
    specs: list[StageSpec] = []
    for stage in stages:

        def spare(stage: Stage = stage) -> Place:
            left = [d for d in range(view.cluster.size) if d not in used]
            if not left:
                raise PlanError(f"stage {stage.index} has no device", hint="p.assign(stage, devices)")
            used.add(left[0])
            return Place((left[0],))

        own = record.assigned.stages.get(stage.index)
        for place, ops in runs(stage.ops, own, where, view.graph, spare):
            specs.append(StageSpec(frozenset(op.name for op in ops), place.devices, place.axes))
    return specs


def _used_axes(record: Record, found: set[str]) -> None:
    """Every axis that something is split along is one of some stage's devices, or of turns."""
    said = [axis for axis, _, _ in (*record.anchors, *record.wishes, *record.sharded)]
    for axis in dict.fromkeys((*record.batch, *said, *sorted(found, key=str))):
        known = record.axes.get(axis)
        if known is None:
            raise UsageError(
                f"no axis is called {axis!r}",
                hint=did_you_mean(str(axis), record.axes) if record.axes else "p.axis(name, ways) declares one",
            )
        if known.ways > 1 and known.kind == "space" and axis not in found:
            raise PlanError(
                f"axis {axis!r} of {known.ways} ways is on no stage's devices",
                hint=f"p.assign(stage, devices, axes=({axis!r},))",
            )


def _anchors_of(record: Record, op: Op, factors: Sequence[Factor]) -> Iterator[tuple[str, str, Split | None]]:
    """How the parts of an op that was assigned are split, axis by axis."""
    done: dict[str, int] = {}
    times = Counter(factor.dim for factor in factors)
    if sum(factor.time for factor in factors) > 1:
        raise PlanError(
            f"{op.name}: parts that share a device are split along one dim only",
            hint="one split, or a device for each part",
        )
    for axis, dim, ways, time in factors:
        if time:
            record.take_turns([op], ways, axis)
        if dim == WHOLE:
            yield axis, op.name, None
            continue
        rule = rule_for(op, record.graph)
        if times[dim] > 1 and dim in rule.contiguous:
            yield axis, op.name, Split(dim, rule.dims[dim].size, 1)
        else:
            yield axis, op.name, record.digit(op, dim, ways, done.get(dim, 1))
        done[dim] = done.get(dim, 1) * ways


def _batch_homes(view: GraphView, record: Record, said: Directives) -> None:
    batch = view.batch
    total = prod(record.batch.values()) * said.microbatches
    if total > batch:
        parts = " × ".join(f"{axis} {ways}" for axis, ways in record.batch.items())
        raise PlanError(
            f"a batch of {batch} cannot be split into {total} parts ({said.microbatches} micro-batches"
            + (f" × {parts})" if parts else ")"),
            hint="a larger batch, or fewer micro-batches",
        )
    for name in view.graph.inputs:
        tensor = view.graph.tensor[name]
        if not tensor.shape or tensor.shape[0] != batch:
            continue
        done = 1
        for axis, ways in record.batch.items():
            said.homes.append((axis, name, Shard(0, *digit_of(batch, ways, done))))
            done *= ways
        if said.microbatches > 1:
            said.micro_homes.append((name, Shard(0, *digit_of(batch, said.microbatches, done))))
