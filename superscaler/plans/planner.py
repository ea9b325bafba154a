"""The Planner: a graph with a cluster beside it, and the primitives that every plan is written in."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from superscaler.errors import PlanError, SplitError, UsageError, did_you_mean
from superscaler.ir.argument import shown, whole
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Axis, Shard
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Split, dim_of
from superscaler.ir.task import Turn
from superscaler.plans.assignment import WHOLE, Assignments, Factor, Part, Parts, Place, runs
from superscaler.scheduler.constructive import schedules
from superscaler.scheduler.cost import operations, slept
from superscaler.transforms.blocks import layer_of
from superscaler.transforms.cut import cut
from superscaler.transforms.place import MICRO, Directives, StageSpec

PlanScript = Callable[["Planner"], None]
VIEWS = ("view",)


@dataclass(frozen=True)
class Stage:
    """Consecutive forward ops."""

    planner: Planner
    index: int
    ops: tuple[Op, ...]

    def find(self, glob: str = "*", *, op: str | None = None) -> list[Op]:
        """The stage's ops whose module path matches, of a source function (``linear``), family or target.

        Of a function that is several ops (a linear is a transposition, a product and a sum), the heaviest only.
        """
        found = [o for o in self.ops if fnmatch.fnmatchcase(o.module, glob)]
        if op is None:
            return [o for o in found if self.planner.family(o) not in VIEWS]
        return self.planner.of_kind(found, op)


class Planner:
    """What a plan script works with. Primitives record what they say; ``compile`` then places and checks it."""

    def __init__(self, graph: Graph, cluster: Cluster) -> None:
        self.graph = graph
        self.cluster = cluster
        self._forward = tuple(op for op in graph.ops if op.phase == "forward" and self._trained(op))
        self._stages: list[Stage] = [Stage(self, 0, self._forward)]
        self._axes: dict[str, Axis] = {}
        self._anchors: list[tuple[str, str, Split | None]] = []
        self._wishes: list[tuple[str, str, Split]] = []
        self._batch: dict[str, int] = {}
        self._sharded: list[tuple[str, str, bool]] = []
        self._early: set[str] = set()
        self._offloaded: set[str] = set()
        self._turns: dict[str, set[str]] = {}
        self._used: dict[tuple[str, str], int] = {}
        self._microbatches = 1
        self._assigned = Assignments()
        self._recompute: set[str] = set()
        self._order = "1f1b"
        self._before: list[tuple[Turn, Turn]] = []
        self._sequence: list[tuple[frozenset[str], frozenset[str]]] = []

    # --- looking ----------------------------------------------------------------------------------------------------

    def _trained(self, op: Op) -> bool:
        if not hasattr(self, "_tainted"):
            self._tainted: set[str] = {t.name for t in self.graph.tensors if t.kind == "parameter"}
            self._ops: set[str] = set()
            for each in self.graph.ops:
                if any(name in self._tainted for name in each.inputs):
                    self._tainted.update(each.outputs)
                    self._ops.add(each.name)
        return op.name in self._ops

    @property
    def whole(self) -> Stage:
        """The whole model as one stage."""
        return Stage(self, 0, self._forward)

    def family(self, op: Op) -> str:
        """The family of an op's split rule."""
        return rule_for(op, self.graph).family

    def find(self, glob: str = "*", *, op: str | None = None) -> list[Op]:
        """Forward ops of the whole model; see :meth:`Stage.find`."""
        return self.whole.find(glob, op=op)

    def dims(self, op: Op) -> tuple[str, ...]:
        """The dims along which an op may be split."""
        return tuple(n for n, d in rule_for(op, self.graph).dims.items() if not d.whole)

    def size(self, op: Op, dim: str) -> int:
        """The whole length of one of an op's dims."""
        return rule_for(op, self.graph).dims[dim].size

    def shape(self, op: Op) -> tuple[int, ...]:
        """The whole shape of an op's first result."""
        return self.graph.tensor[op.outputs[0]].shape

    def depends_on_input(self, op: Op) -> bool:
        """Whether an op reads, directly or not, an input that has the batch."""
        todo, seen = list(op.inputs), set[str]()
        while todo:
            name = todo.pop()
            tensor = self.graph.tensor[name]
            if tensor.kind == "input" and tensor.shape[:1] == (self.batch,):
                return True
            producer = self.graph.producer.get(name)
            if producer is not None and producer.name not in seen:
                seen.add(producer.name)
                todo += producer.inputs
        return False

    def passes(self) -> int:
        """How many times the layers of the model run per batch: more than once if it recycles."""
        times: dict[tuple[str, str, tuple[str, ...]], int] = {}
        for op in self._forward:
            parameters = tuple(n for n in op.inputs if self.graph.tensor[n].kind == "parameter")
            if parameters and any(part.isdigit() for part in op.module.split(".")):
                key = (op.module, op.target, parameters)
                times[key] = times.get(key, 0) + 1
        return max(sorted(times.values())[len(times) // 2 :], default=1) if times else 1

    def after(self, op: Op) -> list[Op]:
        """The forward ops that depend on ``op``."""
        tainted, found = set(op.outputs), list[Op]()
        for each in self._forward:
            if any(name in tainted for name in each.inputs):
                tainted.update(each.outputs)
                found.append(each)
        return found

    def leads_to_loss(self, op: Op) -> bool:
        """Whether only the loss reads what ``op`` makes, views and sums with a bias apart."""
        return all(self.family(each) in ("loss", "view", "pointwise", "reduction") for each in self.after(op))

    def layers(self, ops: Iterable[Op]) -> list[list[Op]]:
        """``ops`` by the layer that they belong to: their module path up to its first number."""
        found: dict[str, list[Op]] = {}
        for op in ops:
            found.setdefault(layer_of(op.module), []).append(op)
        return list(found.values())

    def bytes(self, op: Op) -> int:
        """Bytes of an op's whole results."""
        return sum(self.graph.tensor[name].bytes for name in op.outputs)

    def readers(self, op: Op) -> list[Op]:
        """The forward ops that read what ``op`` makes, themselves or through views."""
        found: list[Op] = []
        for each in (c for name in op.outputs for c in self.graph.consumers[name] if c.phase == "forward"):
            found += self.readers(each) if self.family(each) in VIEWS else [each]
        return found

    def of_family(self, family: str) -> list[Op]:
        """The forward ops of a rule family; none is no error."""
        return [op for op in self._forward if self.family(op) == family]

    def of_kind(self, ops: Iterable[Op], kind: str) -> list[Op]:
        """Those of ``ops`` with this source function, family or target; of a function, its heaviest ops."""
        found = [o for o in ops if kind in (o.function, self.family(o), o.target)]
        heavy = [o for o in found if self.family(o) in ("matmul", "attention", "gather", "norm", "convolution")]
        if found or kind in {o.function for o in self._forward} | {self.family(o) for o in self._forward}:
            return heavy if heavy and kind not in ("view", "pointwise", "reduction") else found
        known = {o.function for o in self._forward if o.function} | {self.family(o) for o in self._forward}
        raise UsageError(f"no op of the model is a {kind!r}", hint=did_you_mean(kind, known))

    # --- primitives -------------------------------------------------------------------------------------------------

    def microbatches(self, count: int) -> None:
        """Run the batch in ``count`` micro-batches, gradients accumulated; exactly the full batch's result."""
        if whole(count, "microbatches") < 1:
            raise PlanError(f"microbatches must be at least 1, not {count}", hint="microbatches=1: the whole batch")
        self._microbatches = count

    def stages(self, count: int) -> list[Stage]:
        """Cut the forward ops into ``count`` consecutive stages of about equal cost."""
        runs = cut(self.graph, self._forward, whole(count, "stages"), self._cost)
        self._stages = [Stage(self, i, tuple(run)) for i, run in enumerate(runs)]
        return self._stages

    def cut(self, *groups: Iterable[Op]) -> list[Stage]:
        """Stages of the given forward ops each, in order; every forward op belongs to one."""
        self._stages = [Stage(self, i, tuple(group)) for i, group in enumerate(groups)]
        times = Counter(op.name for stage in self._stages for op in stage.ops)
        missing = {op.name for op in self._forward} - times.keys()
        if missing:
            raise PlanError(f"{len(missing)} forward ops belong to no stage, {min(missing)} among them")
        twice = [name for name, count in times.items() if count > 1]
        if twice:
            raise PlanError(f"{len(twice)} ops belong to several stages, {twice[0]} among them")
        empty = [stage.index for stage in self._stages if not stage.ops]
        if empty:
            raise PlanError(f"stage {empty[0]} has no ops")
        return self._stages

    def runs(self, ops: Sequence[Op], count: int) -> list[list[Op]]:
        """``ops`` in ``count`` consecutive runs of about equal cost, cut where little crosses."""
        return cut(self.graph, list(ops), whole(count, "runs"), self._cost)

    def layer_runs(self, count: int) -> list[list[Op]]:
        """The forward ops in ``count`` runs of layers of about equal cost; a layer that runs again is in one run.

        Ops of no submodule (between the layers, the loss) go where what they read last is made.
        """
        layers: dict[str, list[Op]] = {}
        for op in self._forward:
            if op.module:
                layers.setdefault(layer_of(op.module), []).append(op)
        if not 1 <= whole(count, "stages") <= len(layers):
            raise PlanError(
                f"the model has {len(layers)} layers, which cannot be cut into {count} stages",
                hint=f"1 to {len(layers)} stages",
            )
        groups, costs = list(layers.values()), [sum(map(self._cost, ops)) for ops in layers.values()]
        runs: list[list[Op]] = [[] for _ in range(count)]
        total, before, stage = sum(costs), 0.0, 0
        for i, (group, cost) in enumerate(zip(groups, costs, strict=True)):
            full = runs[stage] and before + cost / 2 > total * (stage + 1) / count
            if stage < count - 1 and (full or len(groups) - i <= count - 1 - stage):
                stage += 1
            runs[stage] += group
            before += cost
        stage_of = {op.name: i for i, run in enumerate(runs) for op in run}
        for op in self._forward:
            if op.name not in stage_of:
                makers = [self.graph.producer[n].name for n in op.inputs if n in self.graph.producer]
                stage_of[op.name] = max((stage_of.get(m, 0) for m in makers), default=0)
                runs[stage_of[op.name]].append(op)
        return runs

    def _cost(self, op: Op) -> float:
        if op.target.startswith("superscaler.sleep"):
            return 1e12 * slept(op, self.graph)
        rule = rule_for(op, self.graph)
        size = sum(self.graph.tensor[n].bytes for n in (*op.inputs, *op.outputs))
        return operations(op, rule) + (0.0 if rule.family == "view" else 4.0 * size)

    def split(self, op: Op | Parts, dim: str, ways: int, *, axis: str | None = None) -> Parts:
        """``op`` -> ``ways`` parts along its dim. Of an op that is split already: each part again.

        ``axis``: a named mesh axis to split along; else one is made when the parts are assigned. Raises
        :class:`SplitError` naming the op's dims if it has no such dim, or if that must stay whole.
        """
        parts = op if isinstance(op, Parts) else Parts(self._own(op), ())
        found = rule_for(parts.op, self.graph).dims.get(dim)
        if found is None or found.whole:
            names = ", ".join(n for n, d in rule_for(parts.op, self.graph).dims.items() if not d.whole) or "none"
            why = "has no dim" if found is None else "must not be split along"
            raise SplitError(f"{parts.op.name} ({parts.op.function or parts.op.target}) {why} {dim!r}",
                             f"at {parts.op.source or 'unknown line'}", hint=f"its dims are: {names}")  # fmt: skip
        if whole(ways, "ways") < 1 or found.size < ways:
            raise SplitError(f"{parts.op.name}: dim {dim!r} of {found.size} cannot be split {ways} ways",
                             f"at {parts.op.source or 'unknown line'}", hint=f"1 to {found.size} ways")  # fmt: skip
        if axis is not None:
            self.axis(axis, ways)
            self._anchors.append((axis, parts.op.name, self._next_digit(parts.op, dim, ways)))
        return Parts(parts.op, (*parts.splits, (dim, ways)))

    def prefer(self, op: Op, dim: str, ways: int, *, axis: str) -> None:
        """Split ``op`` so if nothing said before has decided about it, and if its rule allows it."""
        found = rule_for(op, self.graph).dims.get(dim)
        if found is not None and not found.whole and found.size >= ways:
            self.axis(axis, ways)
            self._wishes.append((axis, op.name, self._next_digit(op, dim, ways)))

    def prefer_output(self, op: Op, index: int, ways: int, *, axis: str) -> None:
        """Split ``op`` along dim ``index`` of its result if nothing said before has decided about it."""
        shape = self.graph.tensor[op.outputs[0]].shape
        if len(shape) <= index or shape[index] < ways:
            return
        extent, inner = _digit_of(shape[index], ways)
        split = dim_of(rule_for(op, self.graph), Shard(index, extent, inner), output=True, index=0)
        if split is not None:
            self.axis(axis, ways)
            self._wishes.append((axis, op.name, split))

    def replicate(self, op: Op, ways: int = 1, *, axis: str | None = None) -> Parts:
        """Have each device compute ``op`` whole: those of ``axis``, or the ``ways`` that the parts are assigned to."""
        self._own(op)
        if axis is not None:
            self._anchors.append((axis, op.name, None))
        return Parts(op, ((WHOLE, whole(ways, "ways")),))

    def split_batch(self, ways: int, *, axis: str = "data") -> None:
        """Split the batch ``ways`` ways: the first dim of every input that has it. Again on another axis: inside."""
        self.axis(axis, ways)
        if ways > 1:
            self._batch[axis] = ways

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters that are trained."""
        return list(self.graph.gradients)

    def shard_state(self, parameters: Iterable[str], *, axis: str, parameter: bool = False) -> None:
        """Keep the optimizer's state of these parameters in shards along ``axis``, each device stepping its own.

        ``parameter``: the parameter too, gathered where it is read; else it is gathered once after its step.
        """
        known = {t.name for t in self.graph.tensors if t.kind == "parameter"}
        for name in parameters:
            if name not in known:
                raise UsageError(f"the model has no parameter {name!r}", hint=did_you_mean(name, known))
            self._sharded.append((axis, name, parameter))

    def reduce_early(self, parameters: Iterable[str]) -> None:
        """Reduce the gradients of these parameters as soon as they are there: only what a device keeps is kept."""
        self._early.update(parameters)

    def offload_state(self, parameters: Iterable[str]) -> None:
        """Keep the optimizer's state of these parameters in host memory.

        It is fetched layer by layer just before the layer's step, while others compute, and brought back after it.
        """
        self._offloaded.update(parameters)

    def axis(self, name: str, ways: int) -> str:
        """Declare a mesh axis; declaring it again with other ways is an error."""
        if whole(ways, f"the ways of axis {name!r}") < 1:
            raise PlanError(f"axis {name!r} must have at least one way, not {ways}", hint=f"{name}=1: not split")
        if name in self._axes and self._axes[name].ways != ways:
            raise PlanError(f"axis {name!r} has {self._axes[name].ways} ways, not {ways}",
                            hint="the same ways wherever the axis is named, or another name")  # fmt: skip
        self._axes.setdefault(name, Axis(name, ways, "space"))
        return name

    def turns(self, ops: Iterable[Op], ways: int, *, axis: str = "turn") -> str:
        """Declare an axis along which ``ops`` (and their backward) may be split into parts that stay on their device.

        The parts take turns: what a part makes for itself is gone before the next one begins, unless the backward reads
        it. Returns the axis, for ``prefer``: a preference for an op that is not of ``ops`` guides those that follow it.
        """
        if whole(ways, "parts") < 1:
            raise PlanError(f"co-shard needs at least one part, not {ways}", hint="one part: nothing takes turns")
        self._axes.setdefault(axis, Axis(axis, ways, "time"))
        self._turns.setdefault(axis, set()).update(op.name for op in ops)
        return axis

    def assign(
        self, what: Stage | Op | Parts | Part | Sequence[Op | Parts | Part], devices: Sequence[int] | int,
        *, axes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Put a stage on devices (row-major over ``axes``), or zip the parts of an op with devices.

        A device that is given to several parts of an op runs them one after the other. Ops may be assigned one by one:
        those of a stage that nothing is said of are on the stage's devices, or, if it has none, with the ops before.
        """
        listed = (devices,) if isinstance(devices, int) else tuple(devices)
        self._known(listed)
        if isinstance(what, Stage):
            if len(set(listed)) != len(listed):
                raise PlanError(f"a device is given twice: {list(listed)}")
            self._assigned.stages[what.index] = Place(listed, tuple(axes))
            return
        each = list(what) if isinstance(what, list | tuple) else [what]
        single = [part for part in each if isinstance(part, Part)]
        if single and len(single) == len(each) == len(listed):
            for part, device in zip(single, listed, strict=True):
                self._assigned.add_part(part, device)
            return
        for one in each:
            self._assigned.add(self._parts_of(one), listed)

    def _parts_of(self, what: object) -> Parts:
        if isinstance(what, Part):
            raise PlanError(f"parts of {what.parts.op.name} are assigned with other than one device each")
        return what if isinstance(what, Parts) else Parts(self._own(what), ())

    def _own(self, op: object) -> Op:
        """``op``, which must be one of this graph."""
        if not isinstance(op, Op):
            raise UsageError(f"{shown(op)} is no op", hint="p.find(...) gives a list of ops: take them one by one")
        if self.graph.op.get(op.name) != op:
            raise PlanError(f"{op.name} is an op of another graph", hint="ops that this p.find(...) gave")
        return op

    def _known(self, devices: tuple[Any, ...]) -> None:
        for device in devices:
            if not isinstance(device, int):
                raise UsageError(f"{shown(device)} is no device", hint=f"numbers from 0 to {self.cluster.size - 1}")
            if not 0 <= device < self.cluster.size:
                raise PlanError(
                    f"device {device} is not in the cluster of {self.cluster.size}", hint="--devices, or a smaller plan"
                )

    def recompute(self, ops: Op | Iterable[Op] | str) -> None:
        """Do not keep the results of these forward ops: the backward runs them again.

        "all", or what is found as a module glob, else as a source function, family or target.
        """
        if isinstance(ops, str):
            ops = self._inner_ops() if ops == "all" else self.find(ops) or self.find(op=ops)
        self._recompute.update(self._own(op).name for op in ([ops] if isinstance(ops, Op) else ops))

    def inner(self, modules: str = "*") -> list[Op]:
        """Forward ops inside the repeated layers whose module path matches: not embeddings, head or loss."""

        def numbered(op: Op) -> bool:
            return any(part.isdigit() for part in op.module.split("."))

        return [op for op in self._forward if numbered(op) and fnmatch.fnmatchcase(op.module, modules)]

    def _inner_ops(self) -> list[Op]:
        """All forward ops but those whose result is all that passes from one layer to the next."""
        kept = {run[-1].name for run in _layers(self._forward)}
        return [op for op in self._forward if op.name not in kept]

    def order(
        self, what: str | Turn | Stage | Op | Parts, *, before: Turn | Stage | Op | Parts | None = None
    ) -> None:  # fmt: skip
        """The schedule of the stages: "solve", or a named one; or that one thing comes before another of its devices.

        Either both are tasks: kind ("forward", "backward", "weight"), stage and micro-batch. Or both are ops or stages,
        of which then in every micro-batch the one runs before the other. Orders that contradict each other, the
        schedule or what the ops read are an error, which prints the cycle.
        """
        if isinstance(what, str):
            if before is not None:
                raise UsageError(f"the schedule {what!r} comes before nothing", hint="p.order(op, before=another)")
            if what != "solve" and what not in schedules():
                raise UsageError(f"no schedule is called {what!r}", hint=did_you_mean(what, [*schedules(), "solve"]))
            self._order = what
        elif before is None:
            raise UsageError(
                f"order({shown(what)}) says nothing", hint='before=another, or ("forward", stage, micro-batch)'
            )
        elif isinstance(what, tuple) and isinstance(before, tuple):
            self._before.append((what, before))
        else:
            self._sequence.append((self._names(what), self._names(before)))

    def _names(self, what: object) -> frozenset[str]:
        if isinstance(what, Stage):
            return frozenset(op.name for op in what.ops)
        return frozenset({self._parts_of(what).op.name})

    # --- what was said ----------------------------------------------------------------------------------------------

    def directives(self) -> Directives:
        """What the plan said, in the form that placing takes. Raises :class:`PlanError` for what does not add up."""
        said = Directives([], microbatches=self._microbatches, order=self._order)
        said.recompute = frozenset(self._recompute)
        said.before, said.sequence = tuple(self._before), tuple(self._sequence)
        apart = self._order == "solve" or schedules()[self._order].weight_apart
        said.split_weight = apart and not self._turns
        said.anchors, said.wishes = list(self._anchors), self._wishes
        said.stages = self._stage_specs(said)
        self._used_axes({axis for stage in said.stages for axis in stage.axes})
        said.axes = dict(self._axes)
        said.turns = {axis: frozenset(ops) for axis, ops in self._turns.items()}
        said.sharded, said.early = self._sharded, frozenset(self._early)
        said.offloaded = frozenset(self._offloaded)
        self._batch_homes(said)
        return said

    def _stage_specs(self, said: Directives) -> list[StageSpec]:
        """The stages with their devices, each cut where ops of it are assigned elsewhere."""
        where: dict[str, Place] = {}
        for op, place, factors in self._assigned.factors():
            if where.setdefault(op.name, place) != place:
                raise PlanError(f"{op.name} is assigned to {list(where[op.name].devices)} and to {list(place.devices)}")
            for axis in place.axes:
                self.axis(axis, int(axis.partition("_")[2]))
            said.anchors += self._anchors_of(op, factors)
        used = {d for place in (*where.values(), *self._assigned.stages.values()) for d in place.devices}
        specs: list[StageSpec] = []
        for stage in self._stages:

            def spare(stage: Stage = stage) -> Place:
                left = [d for d in range(self.cluster.size) if d not in used]
                if not left:
                    raise PlanError(f"stage {stage.index} has no device", hint="p.assign(stage, devices)")
                used.add(left[0])
                return Place((left[0],))

            own = self._assigned.stages.get(stage.index)
            for place, ops in runs(stage.ops, own, where, self.graph, spare):
                specs.append(StageSpec(frozenset(op.name for op in ops), place.devices, place.axes))
        return specs

    def _used_axes(self, found: set[str]) -> None:
        """Every axis that something is split along is one of some stage's devices, or of turns."""
        said = [axis for axis, _, _ in (*self._anchors, *self._wishes, *self._sharded)]
        for axis in dict.fromkeys((*self._batch, *said)):
            known = self._axes.get(axis)
            if known is None:
                raise UsageError(
                    f"no axis is called {axis!r}", hint=did_you_mean(axis, self._axes) if self._axes else None
                )
            if known.ways > 1 and known.kind == "space" and axis not in found:
                raise PlanError(
                    f"axis {axis!r} of {known.ways} ways is on no stage's devices",
                    hint=f"p.assign(stage, devices, axes=({axis!r},))",
                )

    def _anchors_of(self, op: Op, factors: Sequence[Factor]) -> Iterator[tuple[str, str, Split | None]]:
        """How the parts of an op that was assigned are split, axis by axis."""
        done: dict[str, int] = {}
        times = Counter(factor.dim for factor in factors)
        if sum(factor.time for factor in factors) > 1:
            raise PlanError(f"{op.name}: parts that share a device are split along one dim only")
        for axis, dim, ways, time in factors:
            if time:
                self.turns([op], ways, axis=axis)
            if dim == WHOLE:
                yield axis, op.name, None
                continue
            rule = rule_for(op, self.graph)
            if times[dim] > 1 and dim in rule.contiguous:
                yield axis, op.name, Split(dim, rule.dims[dim].size, 1)
            else:
                yield axis, op.name, self._digit(op, dim, ways, done.get(dim, 1))
            done[dim] = done.get(dim, 1) * ways

    def _next_digit(self, op: Op, dim: str, ways: int) -> Split:
        """A digit inside those by which the op's dim was said to be split before."""
        done = self._used.get((op.name, dim), 1)
        self._used[op.name, dim] = done * ways
        return self._digit(op, dim, ways, done)

    def _digit(self, op: Op, dim: str, ways: int, done: int = 1) -> Split:
        return Split(dim, *_digit_of(rule_for(op, self.graph).dims[dim].size, ways, done))

    def _batch_homes(self, said: Directives) -> None:
        batch = self.batch
        total = prod(self._batch.values()) * said.microbatches
        if total > batch:
            parts = " × ".join(f"{axis} {ways}" for axis, ways in self._batch.items())
            raise PlanError(
                f"a batch of {batch} cannot be split into {total} parts ({said.microbatches} micro-batches"
                + (f" × {parts})" if parts else ")"),
                hint="a larger batch, or fewer micro-batches",
            )
        for name in self.graph.inputs:
            tensor = self.graph.tensor[name]
            if not tensor.shape or tensor.shape[0] != batch:
                continue
            done = 1
            for axis, ways in self._batch.items():
                said.homes.append((axis, name, Shard(0, *_digit_of(batch, ways, done))))
                done *= ways
            if said.microbatches > 1:
                said.micro_homes.append((name, Shard(0, *_digit_of(batch, said.microbatches, done))))

    @property
    def batch(self) -> int:
        """The size of the batch: the first dim of the first input that has any."""
        for name in self.graph.inputs:
            if self.graph.tensor[name].shape:
                return self.graph.tensor[name].shape[0]
        return 1


def _digit_of(size: int, ways: int, done: int = 1) -> tuple[int, int]:
    """The digit (extent, inner) by which a dim of ``size``, split ``done`` ways already, is split ``ways`` further.

    Even splits get a digit of their own, so that several nest in any order; uneven ones share the finest.
    """
    if size % (ways * done) == 0:
        return ways, size // (ways * done)
    if size % done == 0:
        return size // done, 1
    return size, 1


def _layers(ops: Sequence[Op]) -> list[list[Op]]:
    """Runs of ops of the same layer."""
    runs: list[tuple[str, list[Op]]] = []
    for op in ops:
        key = layer_of(op.module)
        if runs and runs[-1][0] == key:
            runs[-1][1].append(op)
        else:
            runs.append((key, [op]))
    return [run for _, run in runs]


__all__ = ["MICRO", "Part", "Parts", "PlanScript", "Planner", "Stage"]
