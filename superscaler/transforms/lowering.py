"""Lowering: a TaskGraph to the bodies of its tasks, with every communication in its place.

Each op is emitted into the block of its stage and kind; each tensor it reads is brought into the layout that the op
needs: taken as it is, sliced, resharded by collectives, received from another mesh, accumulated over micro-batches, or
computed again (views and constants are never saved; recomputed ops by the user's choice).
"""

from __future__ import annotations

from superscaler.errors import PlanError
from superscaler.ir.graph import Op
from superscaler.ir.layout import Layout, Partial, Shard, State
from superscaler.ir.program import (
    Accumulate,
    Collect,
    Collective,
    Grouping,
    Lane,
    Mask,
    Offload,
    Recv,
    Route,
    Send,
    Slice,
    Value,
)
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import op_layouts
from superscaler.ir.task import Placement, TaskGraph
from superscaler.transforms.blocks import FETCH, FREE, MODEL, Body, Compute, Key, Made, layer_of
from superscaler.transforms.place import WORLD
from superscaler.transforms.reshard import moves, route
from superscaler.transforms.turns import along


class Lowering:
    """The work of lowering one TaskGraph: the bodies, values, routes and groups made so far."""

    def __init__(self, tasks: TaskGraph) -> None:
        self.tasks = tasks
        self.graph = tasks.graph
        self.space = tasks.space
        self.micro = tasks.microaxis
        self.index = {op.name: i for i, op in enumerate(tasks.graph.ops)}
        self.values: list[Value] = []
        self.bodies: dict[Key, Body] = {}
        self.made: dict[tuple[str, str], list[tuple[int, Key]]] = {}
        self.groupings: list[Grouping] = []
        self._grouped: dict[tuple[str, tuple[str, ...]], int] = {}
        self.routes: list[Route] = []
        self.inputs: dict[tuple[str, str], int] = {}
        self.state: dict[str, int] = {}
        self.comms = 0
        stages = [self.space.mesh(m).devices for m in dict.fromkeys(tasks.stages)]
        self.overlapping = len({d for s in stages for d in s}) != sum(map(len, stages))
        self.level = self._levels()
        self._early = self._early_gradients()
        self._run = 0  # the number of the run of turns being emitted
        self._turned: dict[tuple[int, str, Layout, bool], int] = {}
        self._filled: dict[int, Key] = {}  # values of turns all of which have been emitted: local to a block
        self._results = {*self.graph.outputs.values(), *self.graph.gradients.values(), *self.graph.updates.values()}
        self.settled: set[int] = set()  # values that are partials once reduced or accumulated: kept, not made again

    # --- blocks and values ------------------------------------------------------------------------------------------

    def body(self, key: Key, over: tuple[str, ...], lane: Lane = "compute") -> Body:
        """The body of a task; a new one where nothing was put into it yet."""
        found = self.bodies.get(key)
        if found is None:
            found = self.bodies[key] = Body(key, over, lane)
        return found

    def value(self, tensor: str, layout: Layout, over: tuple[str, ...], terms: tuple[int, ...] = ()) -> int:
        """The number of a new value."""
        self.values.append(Value(tensor, layout, over, terms))
        return len(self.values) - 1

    def define(self, body: Body, tensor: str, layout: Layout, *, kept: bool = True) -> int:
        """A new value written in ``body``; ``kept``: found by readers in other blocks too."""
        turns = tuple(a for a, _ in body.at if layout.state(a) is not None)
        if turns:
            return self._define_in_turn(body, tensor, layout, turns, kept)
        number = self.value(tensor, layout, body.over)
        body.here[tensor, layout] = number
        if kept:
            self.made.setdefault((tensor, layout.mesh), []).append((number, body.key))
        return number

    def _define_in_turn(self, body: Body, tensor: str, layout: Layout, turns: tuple[str, ...], kept: bool) -> int:
        """One value for all turns of a run; each turn writes its own instance.

        Another where the turn has it already: an op that is run again for the sake of another of its results.
        """
        key = (self._run, tensor, layout, body.turn.get(tensor, layout) is not None)
        if key not in self._turned:
            self._turned[key] = self.value(tensor, layout, (*body.over, *turns))
        if kept and all(v != self._turned[key] for v, _ in self.made.get((tensor, layout.mesh), [])):
            self.made.setdefault((tensor, layout.mesh), []).append((self._turned[key], body.key))
        body.turn[tensor, layout] = self._turned[key]
        return self._turned[key]

    def _levels(self) -> dict[str, int]:
        """Segments of each stage's blocks: a later pass through the stages (recycling), or, of what runs once per step,
        what comes after an exchange with another mesh."""
        level: dict[str, int] = {}
        for op in self.graph.ops:
            placed = self.tasks.placed[op.name]
            meshes = self.meshes_of(placed)
            level[op.name] = self._pass_of(op, placed, level) if placed.over else 0
            if placed.over:
                continue
            for name in op.inputs:
                producer = self.graph.producer.get(name)
                if producer is None:
                    continue
                foreign = not set(meshes) <= set(self.meshes_of(self.tasks.placed[producer.name]))
                if self.tasks.placed[producer.name].over:  # what is sent is reduced first, in a block of level 0
                    level[op.name] = max(level[op.name], int(foreign and placed.kind == "reduce"))
                    continue
                joint = producer.phase == "optimizer" and producer.target == "superscaler.add_n"
                level[op.name] = max(level[op.name], level[producer.name] + (foreign or joint))
        return level

    def _pass_of(self, op: Op, placed: Placement, level: dict[str, int]) -> int:
        """How often the stages have been left at their end and entered again on the way to ``op``."""
        found = 0
        for name in op.inputs:
            producer = self.graph.producer.get(name)
            if producer is None or producer.phase != op.phase:
                continue
            before = self.tasks.placed[producer.name]
            if not before.over or len({*before.stages}) != 1 or len({*placed.stages}) != 1:
                continue
            here, there = min(placed.stages), min(before.stages)
            back = there < here if op.phase == "backward" else here < there
            found = max(found, level[producer.name] + back)
        return found

    def meshes_of(self, placed: Placement) -> list[str]:
        """The meshes on which an op runs: one for each of its stages."""
        return [self.tasks.stages[s] for s in placed.stages]

    def key_of(self, op: Op, mesh: str) -> Key:
        """The task that an op belongs to on ``mesh``."""
        placed = self.tasks.placed[op.name]
        stage = next(s for s in placed.stages if self.tasks.stages[s] == mesh)
        # The optimizer's tasks are layer by layer, so that a gradient can go as soon as its layer is done.
        tag = layer_of(op.module) if placed.kind == "optimizer" else ""
        return Key(placed.kind, stage if placed.over else -1, mesh, self.level[op.name], tag)

    # --- ops --------------------------------------------------------------------------------------------------------

    def emit(self, op: Op, body: Body) -> None:
        """Run ``op`` in ``body``, with its inputs brought where it needs them."""
        placed = self.tasks.placed[op.name]
        mesh = self.space.mesh(body.key.mesh)
        allowed = {*mesh.axes, *body.over, *(a for a, _ in body.at)}
        splits = tuple((a, s) for a, s in placed.splits if a in allowed and self.space.axis(a).ways > 1)
        at = tuple((a, k) for a, k in body.at if any(a == axis for axis, _ in splits))
        ins, outs = op_layouts(rule_for(op, self.graph), splits, mesh.name, self.space)
        sources = tuple(self.need(n, layout, body, op) for n, layout in zip(op.inputs, ins, strict=True))
        results = tuple(self.define(body, n, layout) for n, layout in zip(op.outputs, outs, strict=True))
        body.steps.append(Compute(self.index[op.name], sources, results, splits, mesh.name, at))

    def reduce_early(self, op: Op, body: Body) -> None:
        """Bring the gradients that ``op`` has just made into the layout in which the optimizer reads them."""
        for tensor in self._early.get(op.name, ()):
            reader = next((c for c in self.graph.consumers[tensor] if c.phase == "optimizer"), None)
            if reader is None:  # without an optimizer, gradients are given out whole
                continue
            placed = self.tasks.placed[reader.name]
            if body.key.mesh not in self.meshes_of(placed):
                continue
            layout = self.layouts_of(reader, body.key.mesh)[0][reader.inputs.index(tensor)]
            if body.over:
                layout = self.space.layout(layout.mesh, {**dict(layout.states), self.micro: Partial()})
            self.need(tensor, layout, body)

    def _early_gradients(self) -> dict[str, list[str]]:
        """Op -> the gradients that it makes, views apart."""
        found: dict[str, list[str]] = {}
        for tensor in self.tasks.early:
            op = self.graph.producer[tensor]
            while op.target in FREE and op.inputs:
                op = self.graph.producer[op.inputs[0]]
            if self.tasks.placed[op.name].kind in ("backward", "weight"):
                found.setdefault(op.name, []).append(tensor)
        return found

    def need(self, tensor: str, layout: Layout, body: Body, reader: Op | None = None) -> int:
        """The value of ``tensor`` in ``layout`` as read in ``body``; emits what brings it there."""
        if body.at and all(layout.state(a) is None for a, _ in body.at):
            return self._outside_turns(tensor, layout, body, reader)
        found = body.found(tensor, layout)
        if found is not None:
            return found
        source = self._local(tensor, layout, body)
        if source is None:
            source = self._foreign(tensor, layout, body)
        return self.reshard(source, layout, body, reader)

    def _outside_turns(self, tensor: str, layout: Layout, body: Body, reader: Op | None) -> int:
        """What is the same for all turns is brought once, before the first that reads it."""
        at, turn = body.at, body.turn
        body.at, body.turn = (), Made()
        found = self.need(tensor, layout, body, reader)
        body.at, body.turn = at, turn
        return found

    def _local(self, tensor: str, layout: Layout, body: Body) -> int | None:
        """A value of ``tensor`` on the body's own mesh, over the body's own time."""
        mesh = body.key.mesh
        inside = [v for v in body.versions(tensor) if self._reaches(v, layout)]
        if inside:
            return self._best(inside, layout)
        settled = [v for v, _ in self._made(tensor, body) if v in self.settled and self._in_time(v, body)]
        if settled:
            return self._best(settled, layout)
        producer = self.graph.producer.get(tensor)
        if producer is None:
            if (tensor, mesh) not in self.made:
                self._source(tensor, mesh)
        elif self._again(producer, tensor, body):
            if self._of_other_turns(producer, tensor, layout, body):
                return self._outside_turns(tensor, layout.without(*(a for a, _ in body.at)), body, None)
            self.emit(producer, body)
            versions = body.versions(tensor)
            return self._best([v for v in versions if self._reaches(v, layout)] or versions, layout)
        elif producer.target in FREE and mesh in self.meshes_of(self.tasks.placed[producer.name]):
            home = self.key_of(producer, mesh)
            if not any(key == home for _, key in self.made.get((tensor, mesh), [])):
                self.emit(producer, self.body(home, self.tasks.placed[producer.name].over))
        made = self._kept(tensor, body)
        usable = [v for v in made if self._in_time(v, body)]
        if usable:
            return self._best([v for v in usable if self._reaches(v, layout)] or usable, layout)
        if all(self._copied(v) for v in made):
            return None
        return self._over_time(self._reduced_first(made), body)

    def _copied(self, number: int) -> bool:
        """Whether a value that exists once was brought to its mesh for each micro-batch anew."""
        value = self.values[number]
        return value.over == (self.micro,) and value.layout.state(self.micro) is None

    def _made(self, tensor: str, body: Body) -> list[tuple[int, Key]]:
        """The values of a tensor on the body's mesh, with the blocks that made them, which may all stand before it."""
        return [(v, key) for v, key in self.made.get((tensor, body.key.mesh), []) if _may_precede(key, body.key)]

    def _kept(self, tensor: str, body: Body) -> list[int]:
        """The values of a tensor on the body's mesh; where it was recomputed, those of the backward."""
        made = self._made(tensor, body)
        producer = self.graph.producer.get(tensor)
        if producer is not None and producer.name in self.tasks.recompute and body.key.kind in ("backward", "weight"):
            again = [v for v, key in made if key.kind == "backward" and self._in_time(v, body)]
            if again:
                return again
        return [v for v, _ in made]

    def _reduced_first(self, made: list[int]) -> int:
        """Of the values of every micro-batch, one that is reduced already, else the first."""
        return next((v for v in made if v in self.settled), made[0])

    def _reaches(self, number: int, layout: Layout) -> bool:
        """Whether a value can be brought into ``layout``: a micro-batch's or turn's part gives no other and not all."""
        value = self.values[number]
        states = [(value.layout.state(axis), layout.state(axis)) for axis in value.over]
        return all(mine == wanted or (mine is None and isinstance(wanted, Shard)) for mine, wanted in states)

    def _of_other_turns(self, op: Op, tensor: str, layout: Layout, body: Body) -> bool:
        """Whether ``op``, split as it is, would give another part of its result than a turn of ``body`` reads."""
        index = op.outputs.index(tensor)
        made = [(along(op, axis, self.tasks, output=True, index=index), layout.state(axis)) for axis, _ in body.at]
        return any(state is not None and state != wanted for state, wanted in made)

    def _in_time(self, number: int, body: Body) -> bool:
        """Whether a value exists once, or once per instance of the body."""
        over = self.values[number].over
        here = self._filled.get(number) == body.key and over == (*body.over, *(a for a, _ in body.at))
        return over in ((), body.over) or here

    def _again(self, op: Op, tensor: str, body: Body) -> bool:
        """Whether ``op`` is to be run in this body rather than its result ``tensor`` kept from where it first ran."""
        placed = self.tasks.placed[op.name]
        if body.key.mesh not in self.meshes_of(placed) or placed.over not in ((), body.over):
            return False
        if op.target in FREE:
            return True
        if op.name not in self.tasks.recompute or placed.kind != "forward":
            return False
        made = self._made(tensor, body)
        done = any(key.kind == "backward" and (v in self._filled or not self._turns_of(v, body)) for v, key in made)
        return body.key.kind in ("backward", "weight") and not done

    def _best(self, candidates: list[int], layout: Layout) -> int:
        """The candidate that is nearest to the layout: equal, else complete, else the first one made."""

        def far(number: int) -> tuple[int, int, int]:
            have = self.values[number].layout
            unlike = sum(layout.state(a) != s for a, s in have.states) + sum(
                have.state(a) is None for a, _ in layout.states
            )
            return (have != layout, len(have.partial), unlike)

        return min(candidates, key=far)

    def _source(self, tensor: str, mesh: str) -> None:
        """An input or a state tensor, where it is read first."""
        kind = self.graph.tensor[tensor].kind
        start = Key("per_step", -1, mesh)
        if kind == "input":
            if self.overlapping:
                mesh = WORLD  # a device that is on several meshes gets each input once
            if (tensor, mesh) in self.inputs:
                return
            layout = Layout(mesh, self.tasks.homes[tensor].states) if tensor in self.tasks.homes else Layout(mesh)
            here = set(self.space.mesh(mesh).axes)
            layout = Layout(mesh, tuple(s for s in layout.states if s[0] in here))
            self.inputs[tensor, mesh] = self.value(tensor, layout, ())
            self.made.setdefault((tensor, mesh), []).append((self.inputs[tensor, mesh], start))
            return
        home = self.tasks.homes[tensor]
        if tensor not in self.state:
            self.state[tensor] = self.value(tensor, home, ())
            if tensor in self.tasks.hosted:
                self._fetch(tensor, home)
                return
            self.made.setdefault((tensor, home.mesh), []).append((self.state[tensor], Key("per_step", -1, home.mesh)))

    def _fetch(self, tensor: str, home: Layout) -> None:
        """Copy state from host memory, with all of its layer, for all that read it."""
        reader = next(op for op in self.graph.consumers[tensor])
        body = self.body(Key("transfer", -1, home.mesh, 0, FETCH + layer_of(reader.module)), (), "transfer")
        fetched = self.value(tensor, home, ())
        body.steps.append(Offload(self.state[tensor], fetched, "device"))
        self.made.setdefault((tensor, home.mesh), []).append((fetched, body.key))

    # --- time -------------------------------------------------------------------------------------------------------

    def _over_time(self, number: int, body: Body) -> int:
        """A value of every micro-batch, as read once per step: summed, or put together."""
        value = self.values[number]
        made = self.made[value.tensor, value.layout.mesh]
        origin = next(key for v, key in made if v == number)
        state = value.layout.state(self.micro)
        if body.over:
            raise self._refuse(value.tensor)
        whole = self.value(value.tensor, value.layout.without(self.micro), ())
        if isinstance(state, Partial):
            if state.kind != "sum":
                raise self._refuse(value.tensor)
            self.bodies[origin].steps.append(Accumulate(number, whole))
        elif isinstance(state, Shard):
            self.bodies[origin].steps.append(Collect(number, whole))
        else:
            raise self._refuse(value.tensor)
        made.append((whole, origin))
        self.settled.add(whole)
        return whole

    def _refuse(self, tensor: str, reader: Op | None = None) -> PlanError:
        if not self.micro:
            return self._refuse_turns(tensor, reader)
        op = reader or self.graph.producer.get(tensor)
        return PlanError(
            f"the model cannot be micro-batched: {tensor!r} depends on the whole batch, its reader on one micro-batch",
            op.where if op else f"{tensor!r} is an input",
            "what is not linear in a reduction over the batch, or takes the batch whole, needs more than a micro-batch",
            hint="microbatches=1 (data parallelism alone is exact)",
        )

    def _refuse_turns(self, tensor: str, reader: Op | None = None) -> PlanError:
        op = reader or self.graph.producer[tensor]
        return PlanError(
            f"parts of {op.name} cannot share a device: {tensor!r} is made in other turns than it is read",
            op.where,
            hint="one part per device, or the same dim for the ops around it",
        )

    # --- space ------------------------------------------------------------------------------------------------------

    def reshard(self, number: int, layout: Layout, body: Body, reader: Op | None = None) -> int:
        """Bring a value on the body's mesh into ``layout``, inside the body."""
        have = self.values[number]
        if have.layout == layout:
            return number
        found = body.found(have.tensor, layout)
        if found is not None:
            return found
        self._agree_on_time(have, layout, reader)
        if any(isinstance(s, Partial) and have.layout.state(a) != s for a, s in layout.states):
            return self._to_partial(number, layout, body)
        now = number
        for move in moves(self.space, self.graph.tensor[have.tensor].shape, have.layout, layout):
            if move.kind != "slice" and any(self.space.axis(axis).kind == "time" for axis in move.axes):
                raise self._refuse_turns(have.tensor, reader)
            done = body.found(have.tensor, move.layout)
            if done is None:
                kept = move.kind != "slice" or self.graph.tensor[have.tensor].kind == "activation"
                done = self.define(body, have.tensor, move.layout, kept=kept)
                at = body.at if self._turns_of(done, body) else ()
                if move.kind == "slice":
                    body.steps.append(Slice(now, done, at))
                else:
                    group = self.grouping(move.layout.mesh, move.axes)
                    body.steps.append(Collective(move.kind, now, done, move.axes, group, self.comm(), at))
                if move.kind in ("all_reduce", "reduce_scatter"):
                    self.settled.add(done)
            now = done
        return now

    def _agree_on_time(self, have: Value, layout: Layout, reader: Op | None) -> None:
        if not self.micro:
            return
        mine, wanted = have.layout.state(self.micro), layout.state(self.micro)
        sliced = mine is None and isinstance(wanted, Shard)
        if have.over and mine != wanted and not sliced:
            raise self._refuse(have.tensor, reader)
        if not have.over and isinstance(wanted, Partial):
            raise self._refuse(have.tensor, reader)

    def _to_partial(self, number: int, layout: Layout, body: Body) -> int:
        """From complete to partial: kept by one device of each line, zero on the others."""
        have = self.values[number]
        partial = {a for a, s in layout.states if isinstance(s, Partial) and have.layout.state(a) != s}
        complete = self.reshard(number, layout.without(*partial), body)
        axes = tuple(a for a, _ in layout.states if a in partial)
        if any(self.space.axis(a).kind == "time" for a in axes):
            raise self._refuse_turns(have.tensor)
        done = self.define(body, have.tensor, layout)
        at = body.at if self._turns_of(done, body) else ()
        body.steps.append(Mask(complete, done, axes, at))
        return done

    def _turns_of(self, number: int, body: Body) -> bool:
        """Whether a value has an instance for each turn."""
        return len(self.values[number].over) > len(body.over)

    def emit_turns(self, run: list[Op], axis: str, body: Body) -> None:
        """Run ops that are split over ``axis`` turn by turn: all of them for the first part, then for the second, …

        What others read is put together as it comes: sums are added up, parts are written to their place.
        """
        self._run += 1
        wholes: dict[str, int] = {}
        for index in range(self.space.axis(axis).ways):
            body.at, body.turn = ((axis, index),), Made()
            for op in run:
                self.emit(op, body)
                for tensor in op.outputs:
                    if self._read_whole(tensor, axis):
                        self._put_together(tensor, axis, body, wholes)
        self._filled.update((v, body.key) for (run_, *_), v in self._turned.items() if run_ == self._run)
        body.at, body.turn = (), Made()

    def _read_whole(self, tensor: str, axis: str, again: bool | None = None) -> bool:
        """Whether what is not split over the turns, or runs in another block, reads a tensor or a view of it.

        ``again``: whether the backward makes it again for itself.
        """
        if tensor in self._results:
            return True
        producer = self.graph.producer[tensor]
        here = self.tasks.placed[producer.name]
        if again is None:
            again = producer.name in self.tasks.recompute and here.kind == "forward"
        state = along(producer, axis, self.tasks, output=True, index=producer.outputs.index(tensor))
        for op in self.graph.consumers[tensor]:
            there = self.tasks.placed[op.name]
            if there.kind == here.kind and self.level[op.name] != self.level[producer.name]:
                return True  # of another pass through the stages
            elsewhere = there.kind != here.kind or op.name in self.tasks.recompute
            if there.stages != here.stages or (elsewhere and not (again and there.kind in MODEL)):
                return True
            for i, name in enumerate(op.inputs):
                if name == tensor and along(op, axis, self.tasks, output=False, index=i) != state:
                    return True
            if op.target in FREE and any(self._read_whole(out, axis, again) for out in op.outputs):
                return True
        return False

    def _put_together(self, tensor: str, axis: str, body: Body, wholes: dict[str, int]) -> None:
        number = body.versions(tensor)[0]
        value = self.values[number]
        state = value.layout.state(axis)
        if isinstance(state, Partial) and state.kind != "sum":
            raise self._refuse_turns(tensor)
        if tensor not in wholes:
            layout = value.layout.without(axis)
            wholes[tensor] = self.value(tensor, layout, body.over)
            body.here[tensor, layout] = wholes[tensor]
            self.made.setdefault((tensor, layout.mesh), []).append((wholes[tensor], body.key))
            self.settled.add(wholes[tensor])
        kind = Accumulate if isinstance(state, Partial) else Collect
        body.steps.append(kind(number, wholes[tensor], at=body.at))

    def comm(self) -> int:
        """The number of a new communication, in the order in which they are emitted."""
        self.comms += 1
        return self.comms - 1

    def grouping(self, mesh: str, axes: tuple[str, ...]) -> int:
        """The number of the groups that differ along ``axes`` of a mesh."""
        if (mesh, axes) not in self._grouped:
            found = Grouping(self.space.mesh(mesh).lines(axes))
            if found not in self.groupings:
                self.groupings.append(found)
            self._grouped[mesh, axes] = self.groupings.index(found)
        return self._grouped[mesh, axes]

    def _foreign(self, tensor: str, layout: Layout, body: Body) -> int:
        """Fetch a tensor that lives on another mesh; it is then on this one for all later readers."""
        number, origin = self._elsewhere(tensor, body)
        value = self.values[number]
        source = self.bodies.get(origin) or self.body(origin, value.over)
        spatial = [a for a in value.layout.partial if self.space.axis(a).kind == "space"]
        complete = self.reshard(number, value.layout.without(*spatial), source)
        value = self.values[complete]
        target = self._landing(value.layout, layout, body.key.mesh)
        path = route(self.space, tensor, self.graph.tensor[tensor].shape, value.layout, target)
        if all(p.source == p.destination for p in path.pieces):
            arrived = self.define(body, tensor, target)
            body.steps.append(Slice(complete, arrived))
            return arrived
        return self._transfer(complete, path, origin, body)

    def _elsewhere(self, tensor: str, body: Body) -> tuple[int, Key]:
        producer = self.graph.producer.get(tensor)
        if producer is None and tensor not in self.state:
            self._source(tensor, self.tasks.homes[tensor].mesh)
        if producer is not None and producer.target in FREE:
            mesh = self.meshes_of(self.tasks.placed[producer.name])[0]
            home = self.body(self.key_of(producer, mesh), self.tasks.placed[producer.name].over)
            self.need(tensor, self.layouts_of(producer, mesh)[1][producer.outputs.index(tensor)], home)
        made = [entry for (t, _), entries in self.made.items() if t == tensor for entry in entries]
        made = [(v, key) for v, key in made if _may_precede(key, body.key)] or made
        if not made:
            raise PlanError(f"nothing computes {tensor!r} before stage {body.key.stage} reads it")
        usable = [e for e in made if self.values[e[0]].over in ((), body.over)]
        if usable:
            best = self._best([v for v, _ in usable], Layout(body.key.mesh))
            return next(e for e in usable if e[0] == best)
        number = self._reduced_first([v for v, _ in made])
        key = Key("reduce", -1, self.values[number].layout.mesh, 0)
        self.body(key, ())
        return self._over_time(number, body), key

    def layouts_of(self, op: Op, mesh: str) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
        """The layouts of an op's inputs and outputs where it first runs."""
        placed = self.tasks.placed[op.name]
        allowed = {*self.space.mesh(mesh).axes, *placed.over}
        splits = tuple((a, s) for a, s in placed.splits if a in allowed and self.space.axis(a).ways > 1)
        return op_layouts(rule_for(op, self.graph), splits, mesh, self.space)

    def _landing(self, have: Layout, need: Layout, mesh: str) -> Layout:
        """The layout in which a tensor arrives: as it was sent if this mesh has the same axes, else as it is read."""
        axes = set(self.space.mesh(mesh).axes)
        timed = [(a, s) for a, s in have.states if self.space.axis(a).kind == "time"]
        spatial = [(a, s) for a, s in have.states if self.space.axis(a).kind == "space"]
        if all(a in axes for a, _ in spatial):
            return self.space.layout(mesh, dict(have.states))
        wanted: dict[str, State | None] = {
            a: s for a, s in need.states if isinstance(s, Shard) and self.space.axis(a).kind == "space"
        }
        return self.space.layout(mesh, {**wanted, **dict(timed)})

    def _transfer(self, number: int, path: Route, origin: Key, body: Body) -> int:
        value = self.values[number]
        arrived = self.value(value.tensor, path.destination, value.over)
        recv = self.carry(number, arrived, path, (origin, body.key), value.over)
        self.made.setdefault((value.tensor, body.key.mesh), []).append((arrived, recv))
        return arrived

    def carry(self, number: int, arrived: int, path: Route, ends: tuple[Key, Key], over: tuple[str, ...]) -> Key:
        """Send a value along a route, from the block ``ends[0]`` to ``ends[1]``; the key of the receiving task."""
        if path not in self.routes:
            self.routes.append(path)
        which, comm = self.routes.index(path), self.comm()
        origin, target = ends
        source = self.values[number].layout.mesh
        tag = f"{path.tensor}@{source}>{target.mesh}"
        send = self.body(Key("send", origin.stage if over else -1, source, origin.level, tag), over, "comm")
        recv = self.body(Key("recv", target.stage if over else -1, target.mesh, origin.level, tag), over, "comm")
        shared = set(self.space.mesh(source).devices) & set(self.space.mesh(target.mesh).devices)
        send.steps.append(Send(number, which, comm))
        recv.steps.append(Recv(arrived, which, comm, number if shared else -1))
        return recv.key


def _may_precede(first: Key, second: Key) -> bool:
    """Whether ``second`` may read from ``first``: what is made for weight gradients, or later, is not read."""
    if first.kind not in MODEL or second.kind not in MODEL:
        return True
    if (first.kind == "forward") != (second.kind == "forward"):  # levels count passes of one direction
        return first.kind == "forward"
    return first.level <= second.level and (first.kind != "weight" or second.kind == "weight")
