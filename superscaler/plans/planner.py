"""The Planner: a graph with a cluster beside it, and the primitives that every plan is written in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

from superscaler.errors import PlanError, SplitError, UsageError, did_you_mean
from superscaler.ir.argument import shown, whole
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Shard
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import dim_of
from superscaler.ir.task import Turn
from superscaler.plans.assignment import WHOLE, Part, Parts, Place
from superscaler.plans.directives import directives
from superscaler.plans.record import Record, digit_of
from superscaler.plans.stages import in_layers, layer_runs, speeds, weight
from superscaler.plans.view import GraphView, Stage
from superscaler.scheduler.constructive import schedules
from superscaler.transforms.cut import cut
from superscaler.transforms.directives import MICRO, Directives

PlanScript = Callable[["Planner"], None]


class Planner(GraphView):
    """What a plan script works with. Primitives record what they say; ``compile`` then places and checks it."""

    def __init__(self, graph: Graph, cluster: Cluster) -> None:
        super().__init__(graph, cluster)
        self._stages: list[Stage] = [self.whole]
        self._said = Record(graph)

    # --- primitives -------------------------------------------------------------------------------------------------

    def microbatches(self, count: int) -> None:
        """Run the batch in ``count`` micro-batches, gradients accumulated; exactly the full batch's result."""
        if whole(count, "microbatches") < 1:
            raise PlanError(f"microbatches must be at least 1, not {count}", hint="microbatches=1: the whole batch")
        self._said.microbatches = count

    def stages(self, count: int, devices: Sequence[Sequence[int]] = ()) -> list[Stage]:
        """Cut the forward ops into ``count`` consecutive stages of about equal cost.

        ``devices``: those of each stage, where they differ in speed: the stages then take about equal time there.
        """
        if devices and len(devices) != whole(count, "stages"):
            raise PlanError(f"devices of {len(devices)} stages for {count} stages", hint="a group for each stage")
        for group in devices:
            self._known(tuple(_several(group, "the devices of a stage")))
        self._unassigned()
        fast = speeds(self.graph, self.forward, self.cluster, devices) if devices else ()
        runs = cut(self.graph, self.forward, whole(count, "stages"), partial(weight, graph=self.graph), fast)
        self._stages = [Stage(self, i, tuple(run)) for i, run in enumerate(runs)]
        return self._stages

    def cut(self, *groups: Iterable[Op]) -> list[Stage]:
        """Stages of the given forward ops each, in order; every forward op belongs to one."""
        self._unassigned()
        self._stages = [Stage(self, i, tuple(self._ops(group))) for i, group in enumerate(groups)]
        times = Counter(op.name for stage in self._stages for op in stage.ops)
        forward = {op.name for op in self.forward}
        hint = "each op of p.forward in one group"
        if missing := forward - times.keys():
            raise PlanError(f"{len(missing)} forward ops belong to no stage, {min(missing)} among them", hint=hint)
        if others := times.keys() - forward:
            raise PlanError(f"{len(others)} ops of stages are not forward ops, {min(others)} among them", hint=hint)
        if twice := [name for name, count in times.items() if count > 1]:
            raise PlanError(f"{len(twice)} ops belong to several stages, {twice[0]} among them", hint=hint)
        if empty := [stage.index for stage in self._stages if not stage.ops]:
            raise PlanError(f"stage {empty[0]} has no ops", hint="leave it out")
        return self._stages

    def _unassigned(self) -> None:
        """Stages are cut before any is assigned: what was said of the old ones would be taken for the new ones."""
        if self._said.assigned.stages:
            raise PlanError("stages are cut anew after some were assigned", hint="p.stages(...) once, before p.assign")

    def runs(self, ops: Sequence[Op], count: int) -> list[list[Op]]:
        """``ops`` in ``count`` consecutive runs of about equal cost, cut where little crosses."""
        return cut(self.graph, list(ops), whole(count, "runs"), partial(weight, graph=self.graph))

    def layer_runs(self, count: int) -> list[list[Op]]:
        """The forward ops in ``count`` runs of layers of about equal cost; a layer that runs again is in one run.

        Ops of no submodule (between the layers, the loss) go where what they read last is made.
        """
        return layer_runs(self.graph, self.forward, count)

    def split(self, op: Op | Parts, dim: str, ways: int, *, axis: str | None = None) -> Parts:
        """``op`` -> ``ways`` parts along its dim. Of an op that is split already: each part again.

        ``axis``: a named mesh axis to split along; else one is made when the parts are assigned. What belongs to
        ``op`` in the backward is split as follows from it; ops of :meth:`backward_of` may be split otherwise, along a
        named axis. Raises :class:`SplitError` naming the op's dims if it has no such dim, or if that must stay whole.
        """
        parts = op if isinstance(op, Parts) else Parts(self._along(op, axis), ())
        found = rule_for(parts.op, self.graph).dims.get(dim)
        if found is None or found.whole:
            names = ", ".join(n for n, d in rule_for(parts.op, self.graph).dims.items() if not d.whole) or "none"
            why = "has no dim" if found is None else "must not be split along"
            raise SplitError(f"{parts.op.name} ({parts.op.function or parts.op.target}) {why} {dim!r}",
                             parts.op.where, hint=f"its dims are: {names}")  # fmt: skip
        if whole(ways, "ways") < 1 or found.size < ways:
            raise SplitError(f"{parts.op.name}: dim {dim!r} of {found.size} cannot be split {ways} ways",
                             parts.op.where, hint=f"1 to {found.size} ways")  # fmt: skip
        if axis is not None:
            self.axis(axis, ways)
            self._said.anchors.append((axis, parts.op.name, self._said.next_digit(parts.op, dim, ways)))
        found = Parts(parts.op, (*parts.splits, (dim, ways)))
        return found if axis is not None else self._said.assigned.awaited(found)

    def prefer(self, op: Op, dim: str, ways: int, *, axis: str) -> None:
        """Split ``op`` so if nothing said before has decided about it, and if its rule allows it."""
        found = rule_for(self._along(op, axis), self.graph).dims.get(dim)
        if found is not None and not found.whole and found.size >= ways:
            self.axis(axis, ways)
            self._said.wishes.append((axis, op.name, self._said.next_digit(op, dim, ways)))

    def prefer_output(self, op: Op, index: int, ways: int, *, axis: str) -> None:
        """Split ``op`` along dim ``index`` of its result if nothing said before has decided about it."""
        shape = self.graph.tensor[self._along(op, axis).outputs[0]].shape
        if whole(index, "index") < 0:
            raise UsageError(f"dims of a result are counted from 0, not {index}", hint=f"0 to {len(shape) - 1}")
        if len(shape) <= index or shape[index] < ways:
            return
        extent, inner = digit_of(shape[index], ways)
        split = dim_of(rule_for(op, self.graph), Shard(index, extent, inner), output=True, index=0)
        if split is not None:
            self.axis(axis, ways)
            self._said.wishes.append((axis, op.name, split))

    def replicate(self, op: Op, ways: int = 1, *, axis: str | None = None) -> Parts:
        """Have each device compute ``op`` whole: those of ``axis``, or the ``ways`` that the parts are assigned to."""
        self._along(op, axis)
        if whole(ways, "ways") < 1:
            raise PlanError(f"{op.name} cannot be replicated {ways} ways", op.where, hint="ways=1: once")
        if axis is not None:
            self._said.anchors.append((axis, op.name, None))
        found = Parts(op, ((WHOLE, ways),))
        return found if axis is not None else self._said.assigned.awaited(found)

    def split_batch(self, ways: int, *, axis: str = "data") -> None:
        """Split the batch ``ways`` ways: the first dim of every input that has it. Again on another axis: inside."""
        self.axis(axis, ways)
        if ways > 1:
            self._said.batch[axis] = ways

    def shard_state(self, parameters: Iterable[str], *, axis: str, parameter: bool = False) -> None:
        """Keep the optimizer's state of these parameters in shards along ``axis``, each device stepping its own.

        ``parameter``: the parameter too, gathered where it is read; else it is gathered once after its step.
        """
        self._said.sharded += [(axis, name, parameter) for name in self._parameters(parameters)]

    def reduce_early(self, parameters: Iterable[str]) -> None:
        """Reduce the gradients of these parameters as soon as they are there: only what a device keeps is kept."""
        self._said.early.update(self._parameters(parameters))

    def offload_state(self, parameters: Iterable[str]) -> None:
        """Keep the optimizer's state of these parameters in host memory.

        It is fetched layer by layer just before the layer's step, while others compute, and brought back after it.
        """
        self._said.offloaded.update(self._parameters(parameters))

    def _parameters(self, names: Iterable[str]) -> list[str]:
        """``names``, all of which must be the model's parameters."""
        known = {t.name for t in self.graph.tensors if t.kind == "parameter"}
        listed: list[str] = [names] if isinstance(names, str) else _several(names, "parameters")
        for name in listed:
            if name not in known:
                raise UsageError(f"the model has no parameter {name!r}", hint=did_you_mean(str(name), known))
        return listed

    def axis(self, name: str, ways: int) -> str:
        """Declare a mesh axis; declaring it again with other ways is an error."""
        self._said.declare(name, ways)
        return name

    def turns(self, ops: Iterable[Op], ways: int, *, axis: str = "turn") -> str:
        """Declare an axis along which ``ops`` (and their backward) may be split into parts that stay on their device.

        The parts take turns: what a part makes for itself is gone before the next one begins, unless the backward reads
        it. Returns the axis, for ``prefer``: a preference for an op that is not of ``ops`` guides those that follow it.
        """
        self._said.take_turns(self._ops(ops), ways, axis)
        return axis

    def assign(
        self, what: Stage | Op | Parts | Part | Sequence[Op | Parts | Part], devices: Sequence[int] | int,
        *, axes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Put a stage on devices (row-major over ``axes``), or zip the parts of an op with devices.

        A device that is given to several parts of an op runs them one after the other. Ops may be assigned one by one:
        those of a stage that nothing is said of are on the stage's devices, or, if it has none, with the ops before.
        A stage of which nothing at all is assigned goes to the first device that has nothing yet.
        """
        listed = self._listed(devices)
        if isinstance(what, Stage):
            self._assign_stage(what, Place(listed, tuple(_several(axes, "axes"))))
            return
        each = list(what) if isinstance(what, list | tuple) else [what]
        if not each:
            raise PlanError("there is nothing to assign: an empty list", hint="p.find(...) that finds an op")
        single = [part for part in each if isinstance(part, Part)]
        if single and len(single) == len(each) == len(listed):
            for part, device in zip(single, listed, strict=True):
                self._said.assigned.add_part(part, device)
            return
        for one in each:
            self._said.assigned.add(self._parts_of(one), listed)

    def _assign_stage(self, stage: Stage, place: Place) -> None:
        if len(set(place.devices)) != len(place.devices):
            raise PlanError(f"a device is given twice: {list(place.devices)}", hint="each device of a stage once")
        if stage not in self._stages and (len(self._stages) > 1 or stage != self.whole):
            raise PlanError(f"stage {stage.index} is none of this plan's {len(self._stages)} stages",
                            hint="what the last p.stages(...) or p.cut(...) gave")  # fmt: skip
        before = self._said.assigned.stages.setdefault(stage.index, place)
        if before != place:
            raise PlanError(
                f"stage {stage.index} is assigned to {list(before.devices)} and to {list(place.devices)}",
                hint="assign it once",
            )

    def _parts_of(self, what: object) -> Parts:
        if isinstance(what, Part):
            raise PlanError(f"parts of {what.parts.op.name} are assigned with other than one device each",
                            hint="as many parts as devices")  # fmt: skip
        return what if isinstance(what, Parts) else Parts(self._own(what), ())

    def _own(self, op: object) -> Op:
        """``op``, which must be one of this graph, of its forward."""
        found = self._of_graph(op)
        if found.phase != "forward":
            along = "; p.split(op, dim, ways, axis=...) may split it by itself" if found.phase == "backward" else ""
            raise PlanError(
                f"{found.name} is an op of the {found.phase}, which follows the forward",
                hint=(f"its forward op, {found.link}" if found.link else "ops that p.find(...) gave") + along,
            )
        return found

    def _along(self, op: object, axis: str | None) -> Op:
        """``op``, which is split along ``axis``: one of the forward or, along a named axis, of the backward."""
        found = self._of_graph(op)
        return found if axis is not None and found.phase == "backward" else self._own(found)

    def _of_graph(self, op: object) -> Op:
        found = self._op(op)
        if self.graph.op.get(found.name) != found:
            raise PlanError(f"{found.name} is an op of another graph", hint="ops that this p.find(...) gave")
        return found

    def _ops(self, what: object) -> list[Op]:
        """One op, those of a stage, or several."""
        each = what.ops if isinstance(what, Stage) else [what] if isinstance(what, Op) else _several(what, "ops")
        return [self._own(op) for op in each]

    def _listed(self, devices: object) -> tuple[int, ...]:
        """One device or several, all of the cluster."""
        alone = isinstance(devices, str) or not isinstance(devices, Iterable)
        listed: tuple[Any, ...] = (devices,) if alone else tuple(_several(devices, "devices"))
        self._known(listed)
        return listed

    def _known(self, devices: tuple[Any, ...]) -> None:
        for device in devices:
            if not isinstance(device, int) or isinstance(device, bool):
                raise UsageError(f"{shown(device)} is no device", hint=f"numbers from 0 to {self.cluster.size - 1}")
            if not 0 <= device < self.cluster.size:
                raise PlanError(
                    f"device {device} is not in the cluster of {self.cluster.size}",
                    hint=f"numbers from 0 to {self.cluster.size - 1}, or a larger cluster",
                )

    def recompute(self, ops: Op | Stage | Iterable[Op] | str) -> None:
        """Do not keep the results of these forward ops: the backward runs them again.

        An op, those of a stage, or several; "all", or what is found as a module glob, else as a source function,
        family or target.
        """
        if isinstance(ops, str):
            ops = self._inner() if ops == "all" else self.find(ops) or self.find(op=ops)
        self._said.recompute.update(op.name for op in self._ops(ops))

    def _inner(self) -> list[Op]:
        """All forward ops but those whose result is all that passes from one layer to the next."""
        kept = {run[-1].name for run in in_layers(self.forward)}
        return [op for op in self.forward if op.name not in kept]

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
            self._said.order = what
        elif before is None:
            raise UsageError(
                f"order({shown(what)}) says nothing", hint='before=another, or ("forward", stage, micro-batch)'
            )
        elif isinstance(what, tuple) and isinstance(before, tuple):
            self._said.before.append((what, before))
        else:
            self._said.sequence.append((self._names(what), self._names(before)))

    def _names(self, what: object) -> frozenset[str]:
        if isinstance(what, Stage):
            return frozenset(op.name for op in what.ops)
        return frozenset({self._parts_of(what).op.name})

    def directives(self) -> Directives:
        """What the plan said, in the form that placing takes. Raises :class:`PlanError` for what does not add up."""
        return directives(self, self._stages, self._said)


def _several(given: object, name: str) -> list[Any]:
    """A list of what is given. Raises :class:`UsageError` calling it ``name`` for what is not several of anything."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UsageError(f"{name}: {shown(given)} is not several", hint="a list of them")
    return list(cast("Iterable[Any]", given))


__all__ = ["MICRO", "Part", "Parts", "PlanScript", "Planner", "Stage"]
