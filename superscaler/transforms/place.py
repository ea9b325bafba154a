"""Placing: from a plan's directives to a TaskGraph, every op with its stage, its splits and its kind of task."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import NamedTuple

import msgspec

from superscaler.errors import PlanError, SplitError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Axis, Layout, Mesh, Partial, Shard, Space, State
from superscaler.ir.program import BlockKind
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Split, Splits, dim_of, split_state
from superscaler.ir.task import Placement, Reason, TaskGraph
from superscaler.transforms.blocks import FREE
from superscaler.transforms.digits import Digit, Taken, free, room
from superscaler.transforms.directives import MICRO, WORLD, Directives
from superscaler.transforms.precision import optimizer_state, stepping
from superscaler.transforms.propagate import Propagation

CHEAP = ("view", "pointwise", "reduction", "creation")


def place(graph: Graph, said: Directives) -> TaskGraph:
    """The TaskGraph that ``said`` describes. Raises :class:`PlanError` naming what does not fit."""
    return _Placer(graph, said).place()


class _Visit(NamedTuple):
    """One of the times that a micro-batch comes to a stage: rounds after the first are recycling."""

    round: int
    stage: int


class _Placer:
    def __init__(self, graph: Graph, said: Directives) -> None:
        self.graph = graph
        self.said = said
        self.micro = MICRO if said.microbatches > 1 else ""
        self.meshes, self.stage_mesh = self._meshes()
        self.space = self._space()
        self.trained = self._depends({t.name for t in graph.tensors if t.kind in ("parameter", "optimizer")})
        self.fed = self._depends(set(graph.inputs))
        self.home_stage: dict[str, int] = {}
        self._turn_ops: dict[str, set[str]] = {}
        self.stages = self._stages()
        self.splits: dict[str, dict[str, Split | None]] = {}
        self.reasons: dict[str, dict[str, Reason]] = {}
        self.state_homes: dict[str, dict[str, Shard]] = {}

    def place(self) -> TaskGraph:
        sharded = {axis for axis, _, _ in self.said.sharded}
        # Micro-batches split every op that depends on the batch, so what else splits it makes room; shards come last.
        for axis in sorted(self.space.axes, key=lambda a: (a.name != MICRO, a.name in sharded)):
            if axis.name == WORLD or axis.ways == 1:
                continue
            work = self._propagate(axis)
            self.splits[axis.name], self.reasons[axis.name] = work.settle(), work.reasons
            self._refuse_idle(axis)
            for tensor, shard in work.homes.items():
                if shard is not None and (axis.kind == "space" or self.graph.tensor[tensor].kind == "input"):
                    self.state_homes.setdefault(tensor, {})[axis.name] = shard
        kinds, over = self._kinds()
        self._validate()
        placements = tuple(
            Placement(op.name, self.stages[op.name], kinds[op.name], self._splits_of(op), over[op.name])
            for op in self.graph.ops
        )
        return TaskGraph(
            self.graph,
            self.space,
            placements,
            tuple(self.stage_mesh),
            self._homes(),
            self.micro,
            self.said.recompute,
            frozenset(self.graph.gradients[p] for p in self.said.early if p in self.graph.gradients),
            frozenset(name for p in self.said.offloaded for name in optimizer_state(self.graph, p)),
            self.said.order,
            self.said.seed,
            self.said.before,
            self.said.sequence,
            self.reasons,
        )

    # --- meshes and stages ------------------------------------------------------------------------------------------

    def _meshes(self) -> tuple[list[Mesh], list[str]]:
        meshes: dict[tuple[tuple[int, ...], tuple[str, ...]], Mesh] = {}
        names: list[str] = []
        for i, stage in enumerate(self.said.stages):
            axes = tuple(a for a in stage.axes if self.said.axes[a].ways > 1)
            ways = tuple(self.said.axes[a].ways for a in axes)
            if prod(ways) != len(stage.devices):
                shown = " × ".join(f"{a} {w}" for a, w in zip(axes, ways, strict=True))
                raise PlanError(
                    f"stage {i} has {len(stage.devices)} devices, and {shown or 'no axis'} to split it along: "
                    f"{prod(ways)} in all",
                    hint="axes=(...) whose ways multiply to the number of devices, one device, or its ops one by one",
                )
            key = (stage.devices, axes)
            if key not in meshes:
                meshes[key] = Mesh(f"mesh{len(meshes)}", axes, ways, stage.devices)
            names.append(meshes[key].name)
        return list(meshes.values()), names

    def _space(self) -> Space:
        axes = [axis for axis in self.said.axes.values() if axis.ways > 1]
        meshes = list(self.meshes)
        if len(meshes) > 1:
            devices = tuple(sorted({d for m in meshes for d in m.devices}))
            axes.append(Axis(WORLD, len(devices), "space"))
            meshes.append(Mesh(WORLD, (WORLD,), (len(devices),), devices))
        if self.micro:
            axes.append(Axis(MICRO, self.said.microbatches, "time"))
        return Space(tuple(axes), tuple(meshes))

    def _depends(self, roots: set[str]) -> set[str]:
        """Ops that depend on any of the tensors."""
        tainted, ops = set(roots), set[str]()
        for op in self.graph.ops:
            if any(name in tainted for name in op.inputs):
                ops.add(op.name)
                tainted.update(op.outputs)
        return ops

    def _stages(self) -> dict[str, tuple[int, ...]]:
        given = {name: i for i, stage in enumerate(self.said.stages) for name in stage.ops}
        found: dict[str, tuple[int, ...]] = {}
        visits: dict[str, _Visit] = {}
        for op in self.graph.ops:
            if op.phase != "optimizer" and op.name in self.trained:
                visits[op.name] = self._visit_of(op, given, visits)
                found[op.name] = (visits[op.name].stage,)
                for name in op.inputs:
                    if self.graph.tensor[name].kind in ("parameter", "buffer"):
                        self.home_stage.setdefault(name, found[op.name][0])
        owner = {g: p for p, g in (*self.graph.gradients.items(), *self.graph.updates.items())}
        for op in self.graph.ops:
            if op.phase == "optimizer":
                names = [owner.get(n, n) for n in (*op.inputs, *op.outputs)]
                homes = [self.home_stage[n] for n in names if n in self.home_stage]
                if homes:
                    found[op.name] = (homes[0],)
                    for n in op.inputs:
                        if self.graph.tensor[n].kind == "optimizer":
                            self.home_stage[n] = homes[0]
        self._spread(found)
        return found

    def _visit_of(self, op: Op, given: dict[str, int], visits: dict[str, _Visit]) -> _Visit:
        """Where an op runs. Micro-batches visit the stages in order, and in reverse order in the backward.

        A backward op belongs to the visit of its link, or to an earlier one where it reads what is made there: the sum
        of the gradients of a branch is linked to an op of one branch only.
        """
        read = [producer for n in op.inputs if (producer := self.graph.producer.get(n)) and producer.name in visits]
        fed = [visits[p.name] for p in read if p.phase == op.phase and p.name in self.fed]
        last = visits[max(read, key=lambda p: self._order[p.name]).name] if read else _Visit(0, 0)
        at = visits.get(op.link or "", last)
        if op.phase == "backward":
            return min([at, *fed])
        stage = given.get(op.name, at.stage)
        return _Visit(max((v.round + (stage < v.stage) for v in fed), default=0), stage)

    @cached_property
    def _order(self) -> dict[str, int]:
        return {op.name: i for i, op in enumerate(self.graph.ops)}

    def _spread(self, found: dict[str, tuple[int, ...]]) -> None:
        """Ops that no parameter reaches, and scalars of the optimizer, are computed by each mesh that reads them."""
        used: dict[str, set[int]] = {}
        for op in reversed(self.graph.ops):
            if op.name not in found:
                readers = {s for name in op.outputs for c in self.graph.consumers[name] for s in used.get(c.name, ())}
                found[op.name] = self._one_per_mesh(readers or {0}, op)
            used[op.name] = set(found[op.name])
        for tensor in self.graph.tensors:
            if tensor.kind in ("buffer", "cache", "parameter", "optimizer") and tensor.name not in self.home_stage:
                readers = [s for c in self.graph.consumers[tensor.name] for s in found[c.name]]
                self.home_stage[tensor.name] = min(readers, default=0)

    def _one_per_mesh(self, stages: set[int], op: Op) -> tuple[int, ...]:
        """Of each mesh the stage that runs first: the backward comes to the last one first."""
        seen: dict[str, int] = {}
        for stage in sorted(stages, reverse=op.phase == "backward"):
            seen.setdefault(self.stage_mesh[stage], stage)
        return tuple(seen.values())

    # --- splits -----------------------------------------------------------------------------------------------------

    def _on_axis(self, op: Op, axis: Axis) -> bool:
        if axis.name in self.said.turns:
            return op.target in FREE or op.name in self._in_turns(axis.name)
        if axis.kind == "time":
            return op.phase != "optimizer"
        return any(axis.name in self.space.mesh(self.stage_mesh[s]).axes for s in self.stages[op.name])

    def _in_turns(self, axis: str) -> set[str]:
        """The forward ops that may take turns, their backward, and the sums of gradients of what is made again."""
        if axis not in self._turn_ops:
            found = self._turn_ops[axis] = set(self.said.turns[axis])
            again = [op for op in self.graph.ops if op.name in found & self.said.recompute]
            shapes = {self.graph.tensor[name].shape for op in again for name in op.outputs}
            for op in self.graph.ops:
                if op.phase == "backward" and (op.link in found or self._sums(op, found, shapes)):
                    found.add(op.name)
        return self._turn_ops[axis]

    def _sums(self, op: Op, ops: set[str], shapes: set[tuple[int, ...]]) -> bool:
        """Whether an op sums what one of ``ops`` makes (views apart), of one of these shapes."""
        if rule_for(op, self.graph).family != "reduction" or self.graph.tensor[op.inputs[0]].shape not in shapes:
            return False
        producer = self.graph.producer.get(op.inputs[0])
        while producer is not None and producer.target in FREE and producer.inputs:
            producer = self.graph.producer.get(producer.inputs[0])
        return producer is not None and producer.name in ops

    def _refuse_idle(self, axis: Axis) -> None:
        """Turns that nothing takes would save nothing."""
        listed = self.said.turns.get(axis.name)
        if listed and not any(self.splits[axis.name].get(name) for name in listed):
            names = ", ".join(sorted(listed)[:3])
            raise PlanError(
                f"no op can be split {axis.ways} ways into turns",
                f"ops: {names}{', …' if len(listed) > 3 else ''}",
                hint="as many parts as there are heads (on a device, beside tensor parallelism), or fewer",
            )

    def _propagate(self, axis: Axis) -> Propagation:
        whole = set[str]()

        def eligible(op: Op) -> bool:
            return self._on_axis(op, axis) and op.name not in whole

        def passes(op: Op) -> bool:
            return axis.kind == "space" or (op.target == "superscaler.add_n") != (axis.name == MICRO)

        while True:
            work = Propagation(
                self.graph,
                axis,
                eligible=eligible,
                passes=passes,
                fits=lambda op, split: self._fits(axis, op, split),
                room=lambda tensor, shard: self._room(axis, tensor, shard),
            )
            self._seed(work, axis)
            if axis.name != MICRO:
                return work
            work.settle()
            reducing = self._whole_batch(work) - whole
            if not reducing:
                return work
            whole |= reducing

    def _seed(self, work: Propagation, axis: Axis) -> None:
        if axis.name == MICRO:
            for tensor, shard in self.said.micro_homes:
                work.home(tensor, shard)
            return
        for name, parameter, kept in self.said.sharded:
            if name == axis.name:
                self._shard_state(work, axis, parameter, kept)
        for name, op, split in self.said.anchors:
            if name == axis.name:
                work.anchor(self.graph.op[op], self._beside(axis, self.graph.op[op], split))
        work.flow()
        for name, tensor, shard in self.said.homes:
            if name == axis.name:
                work.home(tensor, shard)
        for name, op, split in self.said.wishes:
            if name == axis.name and axis.name not in self.said.turns:
                work.wish(self.graph.op[op], split)
        if axis.name in self.said.turns:
            self._guide(work, axis)

    def _guide(self, work: Propagation, axis: Axis) -> None:
        """What takes turns is split as it would be if all ops could be: wishes for others lead to it."""
        guide = Propagation(self.graph, axis, fits=lambda op, split: self._fits(axis, op, split))
        for name, op, split in self.said.wishes:
            if name == axis.name:
                guide.wish(self.graph.op[op], split)
        for op in self.graph.ops:
            found = guide.decided.get(op.name)
            if found is not None:
                work.wish(op, found, guide.reasons[op.name])

    # --- room beside other axes -------------------------------------------------------------------------------------

    def _taken(self, axis: Axis, op: Op, dim: str) -> list[Taken]:
        """How the axes settled so far split a dim of ``op``.

        Micro-batches take their digit whole: inside of another axis, a micro-batch would be other samples on every
        device, and ops not split so could not follow. Only the axes that split the batch itself may stand around them.
        """
        found: list[Taken] = []
        for name, decided in self.splits.items():
            split = decided.get(op.name)
            if name != axis.name and split is not None and split.dim == dim and not split.passes:
                alone = name == MICRO and axis.name not in self._batch_axes
                ways = split.extent if alone else self.space.axis(name).ways
                found.append(((split.extent, split.inner), ways))
        return found

    @cached_property
    def _batch_axes(self) -> frozenset[str]:
        return frozenset(axis for axis, _, _ in self.said.homes)

    def _fits(self, axis: Axis, op: Op, split: Split) -> bool:
        """Whether ``op`` may be split so too, with room left for what the plan says of axes yet to come."""
        if axis.name in self.said.turns and not self._adds_up(op, split):
            return False
        taken, digit = self._taken(axis, op, split.dim), (split.extent, split.inner)
        if not room(taken, digit, axis.ways):
            return False
        taken.append((digit, axis.ways))
        for name, later in self._anchors.get(op.name, []):
            if later.dim == split.dim and name != axis.name and name not in self.splits:
                found = self._free(op, later, self.space.axis(name).ways, taken)
                if found is None:
                    return axis.name == MICRO
                taken.append((found, self.space.axis(name).ways))
        return True

    def _adds_up(self, op: Op, split: Split) -> bool:
        """Whether what turns make of an op, if not parts of its result, are sums: these can be put together."""
        rule = rule_for(op, self.graph)
        states = [split_state(rule, split, output=True, index=i) for i in range(len(op.outputs))]
        return all(state.kind == "sum" for state in states if isinstance(state, Partial))

    @cached_property
    def _anchors(self) -> dict[str, list[tuple[str, Split]]]:
        """Op -> the splits that the plan states for it."""
        found: dict[str, list[tuple[str, Split]]] = {}
        for axis, name, split in self.said.anchors:
            if split is not None and self.said.axes[axis].ways > 1:
                found.setdefault(name, []).append((axis, split))
        return found

    def _free(self, op: Op, split: Split, ways: int, taken: list[Taken]) -> Digit | None:
        """The digit that was asked for if it is free, else another of the same dim."""
        if room(taken, (split.extent, split.inner), ways):
            return split.extent, split.inner
        rule = rule_for(op, self.graph)
        return free(rule.dims[split.dim].size, ways, taken, contiguous=split.dim in rule.contiguous)

    def _nested(self, op: Op, split: Split) -> Split:
        """One digit for all axes that the plan splits a contiguous dim along, so that their parts nest."""
        rule = rule_for(op, self.graph)
        several = sum(other.dim == split.dim for _, other in self._anchors.get(op.name, [])) > 1
        if split.dim in rule.contiguous and several:
            return Split(split.dim, rule.dims[split.dim].size, 1)
        return split

    def _beside(self, axis: Axis, op: Op, split: Split | None) -> Split | None:
        """A split that was asked for, by a digit that other axes leave free. Raises :class:`SplitError` for none."""
        if split is None or split.passes or split.dim not in rule_for(op, self.graph).dims:
            return split
        taken = self._taken(axis, op, split.dim)
        found = self._free(op, self._nested(op, split), axis.ways, taken)
        if found is None:
            others = [
                name for name, decided in self.splits.items() if (d := decided.get(op.name)) and d.dim == split.dim
            ]
            raise SplitError(
                f"{op.name}: dim {split.dim!r} of {rule_for(op, self.graph).dims[split.dim].size} has no room for "
                f"{axis.ways} ways along {axis.name!r} beside {', '.join(others)}",
                op.where,
                hint="fewer ways or micro-batches, or another dim",
            )
        return msgspec.structs.replace(split, extent=found[0], inner=found[1])

    def _room(self, axis: Axis, tensor: str, shard: Shard) -> bool:
        """Whether a state tensor may lie so as well."""
        taken = [
            ((other.extent, other.inner), self.space.axis(name).ways)
            for name, other in self.state_homes.get(tensor, {}).items()
            if name != axis.name and other.dim == shard.dim
        ]
        return room(taken, (shard.extent, shard.inner), axis.ways)

    # --- state in shards --------------------------------------------------------------------------------------------

    def _shard_state(self, work: Propagation, axis: Axis, parameter: str, kept: bool) -> None:
        """Split the optimizer's step of a parameter along ``axis``, where no other axis splits it."""
        step = stepping(self.graph, parameter)
        if step is None or axis.name not in self.space.mesh(self.stage_mesh[self.home_stage[parameter]]).axes:
            return
        shard = self._free_digit(parameter, step, axis.ways)
        work.pin(parameter, shard if kept else None)
        if shard is not None:
            work.anchor(step, dim_of(rule_for(step, self.graph), shard, output=False, index=0))

    def _free_digit(self, parameter: str, step: Op, ways: int) -> Shard | None:
        """A digit of a parameter that no axis splits yet, nor its step: even if there is one, else the longest dim
        unevenly."""
        shape = self.graph.tensor[parameter].shape
        rule = rule_for(step, self.graph)
        splits = [split for decided in self.splits.values() if (split := decided.get(step.name))]
        stepped = [split_state(rule, split, output=False, index=0) for split in splits]
        taken = [*self.state_homes.get(parameter, {}).values(), *(s for s in stepped if isinstance(s, Shard))]
        uneven: list[Shard] = []
        for dim, size in enumerate(shape):
            others = [s for s in taken if s.dim == dim]
            inside = min((s.inner for s in others), default=size)
            if inside % ways == 0:
                return Shard(dim, ways, inside // ways)
            if inside >= ways:
                uneven.append(Shard(dim, inside, 1))
        return max(uneven, key=lambda s: s.extent, default=None)

    def _whole_batch(self, work: Propagation) -> set[str]:
        """Ops on which no parameter depends that reduce over the batch, with all that they read: the prologue."""
        found: set[str] = set()
        for op in reversed(self.graph.ops):
            if op.name in self.trained or op.phase == "optimizer":
                continue
            split = work.decided.get(op.name)
            reduces = split is not None and any(
                isinstance(split_state(rule_for(op, self.graph), split, output=True, index=i), Partial)
                for i in range(len(op.outputs))
            )
            feeds = any(c.name in found for name in op.outputs for c in self.graph.consumers[name])
            if reduces or feeds:
                found.add(op.name)
        return found

    def _splits_of(self, op: Op) -> Splits:
        found = [(axis.name, self.splits.get(axis.name, {}).get(op.name)) for axis in self.space.axes]
        return tuple((axis, split) for axis, split in found if split is not None)

    # --- kinds ------------------------------------------------------------------------------------------------------

    def _kinds(self) -> tuple[dict[str, BlockKind], dict[str, tuple[str, ...]]]:
        kinds: dict[str, BlockKind] = {}
        over: dict[str, tuple[str, ...]] = {}
        late: set[str] = set()  # tensors known only after the micro-batches
        each: set[str] = set()  # tensors of every micro-batch
        for op in self.graph.ops:
            split = self.splits.get(MICRO, {}).get(op.name)
            over[op.name] = (MICRO,) if split is not None else ()
            if op.phase == "optimizer":
                kinds[op.name] = "optimizer"
            elif not self.micro:
                kinds[op.name] = op.phase
            elif split is not None:
                kinds[op.name] = op.phase
                self._refuse_late(op, late)
                each.update(op.outputs)
            elif any(n in each or n in late for n in op.inputs):
                kinds[op.name] = "reduce"
                late.update(op.outputs)
            else:
                kinds[op.name] = "prologue" if op.name in self.fed else "per_step"
        if self.said.split_weight:
            self._weights(kinds, over)
        return kinds, over

    def _refuse_late(self, op: Op, late: set[str]) -> None:
        for name in op.inputs:
            if name in late:
                raise PlanError(
                    f"the model cannot be micro-batched: {op.name} needs {name!r}, which depends on the whole batch",
                    op.where,
                    hint="microbatches=1 (data parallelism alone is exact)",
                )

    def _weights(self, kinds: dict[str, BlockKind], over: dict[str, tuple[str, ...]]) -> None:
        """Backward ops that only parameters' gradients of their stage need are tasks of their own (zero bubble)."""
        for op in reversed(self.graph.ops):
            if kinds[op.name] != "backward":
                continue
            readers = [
                c for n in op.outputs for c in self.graph.consumers[n] if kinds[c.name] in ("backward", "weight")
            ]
            sleeps = op.target.startswith("superscaler.sleep") and readers
            if not sleeps and all(kinds[c.name] == "weight" and self._may_wait(op, c) for c in readers):
                kinds[op.name] = "weight"

    def _may_wait(self, op: Op, reader: Op) -> bool:
        """Whether an op may wait as long as ``reader``, which is for a weight: on the same stage, before little work.

        On the first stages all gradients are for weights alone in the end; waiting, they would be one long task.
        """
        cheap = rule_for(reader, self.graph).family in CHEAP
        return cheap and set(self.stages[reader.name]) <= set(self.stages[op.name])

    # --- homes ------------------------------------------------------------------------------------------------------

    def _homes(self) -> dict[str, Layout]:
        homes: dict[str, Layout] = {}
        for tensor in self.graph.tensors:
            if tensor.kind == "activation" or tensor.kind == "constant":
                continue
            if tensor.kind == "input":
                mesh = self.stage_mesh[0]
                found = {
                    a: s for a, s in self.state_homes.get(tensor.name, {}).items() if self.space.axis(a).kind == "space"
                }
                homes[tensor.name] = self.space.layout(mesh, dict[str, State | None](found))
                continue
            mesh = self.stage_mesh[self.home_stage[tensor.name]]
            axes = set(self.space.mesh(mesh).axes)
            states: dict[str, State | None] = {
                a: s for a, s in self.state_homes.get(tensor.name, {}).items() if a in axes
            }
            homes[tensor.name] = self.space.layout(mesh, states)
        return homes

    def _validate(self) -> None:
        """No part may be empty: the ways of all axes on one digit must not exceed it."""
        for op in self.graph.ops:
            ways: dict[tuple[str, int, int], int] = {}
            for axis, split in self._splits_of(op):
                if split.passes:
                    continue
                key = (split.dim, split.extent, split.inner)
                ways[key] = ways.get(key, 1) * self.space.axis(axis).ways
                if ways[key] > split.extent:
                    raise SplitError(
                        f"{op.name}: dim {split.dim!r} of {split.extent} cannot be split {ways[key]} ways",
                        op.where,
                        hint="fewer ways or micro-batches, or a larger batch",
                    )
            self._validate_micro(op)

    def _validate_micro(self, op: Op) -> None:
        """Micro-batches inside the uneven parts of another axis are other samples on each of its devices."""
        splits = dict(self._splits_of(op))
        micro = splits.get(MICRO)
        if micro is None or micro.passes:
            return
        shared = {(s.extent, s.inner) for _, s in self.said.micro_homes}
        for axis, _, shard in self.said.homes:
            outside = (shard.extent, shard.inner) in shared and self.space.axis(axis).ways > 1
            if outside and splits.get(axis) != micro and self._on_axis(op, self.space.axis(axis)):
                raise PlanError(
                    f"{op.name} must be split along {axis!r}, because its micro-batches stand inside of uneven parts",
                    op.where,
                    hint=f"a batch that {axis} × microbatches divides, or microbatches=1",
                )
