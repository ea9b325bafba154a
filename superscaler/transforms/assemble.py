"""Assembling: lowered blocks and their slots become one Program per role."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from math import prod

import msgspec

from superscaler.ir.entry import REASONS
from superscaler.ir.graph import ITEMSIZE, Graph
from superscaler.ir.layout import Layout, Shard, Space
from superscaler.ir.plan import Entry, StateTensor
from superscaler.ir.program import (
    Accumulate,
    Block,
    Buffer,
    Call,
    Collect,
    Collective,
    Commit,
    Item,
    Mask,
    Program,
    Recv,
    Send,
    Slice,
    Step,
    Value,
)
from superscaler.ir.schedule import Schedule, Slot
from superscaler.ir.task import Reason
from superscaler.transforms.blocks import Body, Compute, Key, Lowered
from superscaler.transforms.group import Definitions
from superscaler.transforms.lifetimes import aligned, allot, free_sets
from superscaler.transforms.usage import reads, writes
from superscaler.transforms.workspace import workspace


def assemble(lowered: Lowered, schedule: Schedule) -> Entry:
    """The entry: for each role its Program in the order of the schedule, with memory planned."""
    keys = list(lowered.bodies)
    definitions = Definitions(lowered.tasks.graph, lowered.values)
    outside = _read_elsewhere(lowered)
    steps = {key: definitions.steps_of(lowered.bodies[key], outside[key]) for key in keys}
    roles = _roles(lowered)
    posts = _posts(lowered, keys, schedule)
    programs = tuple(_Role(lowered, schedule, keys, steps, workers, posts).program() for workers in roles)
    return Entry(
        lowered.tasks.graph,
        tuple(definitions.all),
        programs,
        tuple(lowered.groupings),
        tuple(lowered.routes),
        schedule.certificate,
        lowered.tasks.microaxis,
        lowered.tasks.microbatches,
        {axis: _letters(lowered.tasks.graph, found) for axis, found in lowered.tasks.reasons.items()},
    )


def _letters(graph: Graph, reasons: Mapping[str, Reason]) -> str:
    return "".join(REASONS[reasons.get(op.name, "")] for op in graph.ops)


def _raw_reads(body: Body) -> set[int]:
    found: set[int] = set()
    for step in body.steps:
        found.update(step.ins if isinstance(step, Compute) else reads(step))
    return found


def _read_elsewhere(lowered: Lowered) -> dict[Key, set[int]]:
    """For each block, which of the results of its ops other blocks read or the entry gives out."""
    readers: dict[int, set[Key]] = defaultdict(set)
    for key, body in lowered.bodies.items():
        for value in _raw_reads(body):
            readers[value].add(key)
    given = {*lowered.outputs.values(), *lowered.gradients.values()}
    return {
        key: {v for v in _results(body) if v in given or readers[v] - {key}} for key, body in lowered.bodies.items()
    }


def _results(body: Body) -> set[int]:
    return {v for step in body.steps if isinstance(step, Compute) for v in step.outs}


def _roles(lowered: Lowered) -> list[tuple[int, ...]]:
    """Workers that belong to the same meshes run the same Program."""
    space = lowered.tasks.space
    meshes = sorted({key.mesh for key in lowered.bodies})
    member: dict[int, tuple[str, ...]] = {}
    for mesh in meshes:
        for device in space.mesh(mesh).devices:
            member[device] = (*member.get(device, ()), mesh)
    roles: dict[tuple[str, ...], list[int]] = {}
    for device in sorted(member):
        roles.setdefault(member[device], []).append(device)
    return [tuple(workers) for workers in roles.values()]


class _Role:
    """The Program of one role being put together."""

    def __init__(
        self,
        lowered: Lowered,
        schedule: Schedule,
        keys: list[Key],
        steps: dict[Key, tuple[Step, ...]],
        workers: tuple[int, ...],
        posts: dict[tuple[int, int], int],
    ) -> None:
        self.lowered = lowered
        self.space = lowered.tasks.space
        self.graph = lowered.tasks.graph
        self.workers = workers
        meshes = {m.name for m in self.space.meshes if workers[0] in m.devices}
        self.keys = [key for key in keys if key.mesh in meshes]
        self.steps = steps
        mine = {keys.index(key): key for key in self.keys}
        slots = [(mine[s.block], s) for s in schedule.slots if s.block in mine]
        collective = {key for key in self.keys if any(isinstance(step, Collective) for step in steps[key])}
        self.items = _merge(slots, posts, collective)
        self.meshes = meshes
        self.number: dict[int, int] = {}
        self.values: list[Value] = []

    def value(self, number: int) -> int:
        """The role's own number of a value."""
        if number not in self.number:
            self.number[number] = len(self.values)
            self.values.append(self.lowered.values[number])
        return self.number[number]

    def program(self) -> Program:
        blocks = tuple(self._block(key) for key in self.keys)
        state = {n: self.value(v) for n, v in self.lowered.state.items() if self._mine(v)}
        inputs = {t: self.value(v) for (t, mesh), v in self.lowered.inputs.items() if mesh in self.meshes}
        outputs = {n: self.value(v) for n, v in self.lowered.outputs.items() if self._mine(v)}
        gradients = {n: self.value(v) for n, v in self.lowered.gradients.items() if self._mine(v)}
        kept = {*state.values(), *inputs.values()}
        given = {*outputs.values(), *gradients.values()}
        spans, last = self._lifetimes(blocks, kept, given)
        sizes = {v: self._size(self.values[v]) for v in {value for value, _ in spans}}
        offsets, arena = allot(spans, sizes)
        frees, which = free_sets({i: e for i, e in last.items() if i[0] not in given}, len(self.items))
        index = {key: i for i, key in enumerate(self.keys)}
        order = tuple(
            Item(index[key], slot.microbatch, slot.start, slot.end, which[i])
            for i, (key, slot) in enumerate(self.items)
        )
        buffers = self._buffers(offsets, sizes)
        return Program(
            self.workers, tuple(self.values), blocks, order, frees, inputs, state, outputs, gradients, buffers, arena,
            arena + self._workspace({b.value for b in buffers} | kept),
        )  # fmt: skip

    def _mine(self, number: int) -> bool:
        return self.lowered.values[number].layout.mesh in self.meshes

    def _block(self, key: Key) -> Block:
        body = self.lowered.bodies[key]
        stages = self.lowered.tasks.stages
        stage = key.stage if key.stage >= 0 else stages.index(key.mesh) if key.mesh in stages else 0
        name = f"{key.kind}{stage}" + (f".{key.level}" if key.level else "") + (f":{key.tag}" if key.tag else "")
        steps = tuple(self._renumber(step) for step in self.steps[key])
        return Block(name, key.kind, key.mesh, steps, body.over, body.lane, stage)

    def _renumber(self, step: Step) -> Step:
        v = self.value
        match step:
            case Call():
                return msgspec.structs.replace(step, ins=tuple(map(v, step.ins)), outs=tuple(map(v, step.outs)))
            case Slice() | Mask() | Collective():
                return msgspec.structs.replace(step, src=v(step.src), dst=v(step.dst))
            case Accumulate() | Collect():
                return msgspec.structs.replace(step, src=v(step.src), into=v(step.into))
            case Send():
                return msgspec.structs.replace(step, src=v(step.src))
            case Recv():
                local = v(step.local) if step.local >= 0 and self._mine(step.local) else -1
                return msgspec.structs.replace(step, dst=v(step.dst), local=local)
            case Commit():
                return msgspec.structs.replace(step, src=v(step.src), state=v(step.state))
            case _:
                return msgspec.structs.replace(step, src=v(step.src), dst=v(step.dst))

    def _lifetimes(
        self, blocks: tuple[Block, ...], kept: set[int], given: set[int]
    ) -> tuple[dict[tuple[int, int], tuple[int, int]], dict[tuple[int, int], int]]:
        """The items during which each value that outlives its task is live; results stay to the end."""
        touched: dict[tuple[int, int], list[int]] = {}
        access = {key: _touches(block) for key, block in zip(self.keys, blocks, strict=True)}
        for i, (key, slot) in enumerate(self.items):
            for value in access[key]:
                instance = (value, slot.microbatch if self.values[value].over else 0)
                touched.setdefault(instance, []).append(i)
        end = len(self.items) - 1
        spans: dict[tuple[int, int], tuple[int, int]] = {}
        last: dict[tuple[int, int], int] = {}
        for instance, items in touched.items():
            value = instance[0]
            if value in kept or (items[0] == items[-1] and value not in given):
                continue
            last[instance] = items[-1]
            spans[instance] = (items[0], end if value in given else items[-1])
        return spans, last

    def _size(self, value: Value) -> int:
        """Bytes of the largest part of a value among this role's workers and all its instances."""
        tensor = self.graph.tensor[value.tensor]
        return held(tensor.shape, tensor.dtype, value.layout, self.space, self.workers)

    def _buffers(self, offsets: dict[tuple[int, int], int], sizes: dict[int, int]) -> tuple[Buffer, ...]:
        count = self.lowered.tasks.microbatches
        table: dict[int, list[int]] = {}
        for (value, j), offset in offsets.items():
            row = table.setdefault(value, [-1] * (count if self.values[value].over else 1))
            row[j] = offset
        return tuple(Buffer(v, sizes[v], tuple(row)) for v, row in sorted(table.items()))

    def _workspace(self, elsewhere: set[int]) -> int:
        """Bytes that the largest task holds beside state and arena."""

        def size(value: int) -> int:
            return self._size(self.lowered.values[value])

        def lies(value: int) -> bool:
            return self.number.get(value, -1) in elsewhere

        return max(
            (workspace(self.lowered.bodies[key], self.lowered.values, self.graph, size, lies) for key in self.keys),
            default=0,
        )


def _touches(block: Block) -> set[int]:
    found: set[int] = set()
    for step in block.steps:
        found.update(reads(step))
        found.update(writes(step))
    return found


def _posts(lowered: Lowered, keys: list[Key], schedule: Schedule) -> dict[tuple[int, int], int]:
    """When each transfer can be posted, on both its ends: as soon as the computation before it on the sender is over.

    Its slot may be later, behind other transfers on the same link; who posts it then, computes in between. What was
    received itself is sent on when it is due.
    """
    ends: dict[str, list[int]] = defaultdict(list)
    for slot in schedule.slots:
        if lowered.bodies[keys[slot.block]].lane == "compute":
            ends[keys[slot.block].mesh].append(slot.end)
    for found in ends.values():
        found.sort()
    steps = [(block, step) for block, key in enumerate(keys) for step in lowered.bodies[key].steps]
    received = {step.dst for _, step in steps if isinstance(step, Recv)}
    sender = {step.comm: (block, step.src in received) for block, step in steps if isinstance(step, Send)}
    comm = {block: step.comm for block, step in steps if isinstance(step, Send | Recv)}
    posts: dict[tuple[int, int], int] = {}
    for slot in schedule.slots:
        if slot.block in comm:
            block, passed_on = sender[comm[slot.block]]
            over = ends[keys[block].mesh]
            before = bisect_right(over, slot.start)
            posts[slot.block, slot.microbatch] = slot.start if passed_on else over[before - 1] if before else 0
    return posts


def _merge(
    slots: list[tuple[Key, Slot]], posts: dict[tuple[int, int], int], collective: set[Key]
) -> list[tuple[Key, Slot]]:
    """One order of a role's tasks: compute by start; communication posted as early as the global order allows.

    All communications are ordered by the time at which they can be posted, on every worker alike; a task that
    communicates inside (``collective``) counts at its start. So every worker's order is a part of one global order, and
    none can wait in a circle.
    """
    background = ("send", "recv", "transfer")
    compute = [(k, s) for k, s in slots if k.kind not in background]
    comms = [
        (posts.get((s.block, s.microbatch), s.start), s.start, k.tag, s.microbatch, k, s)
        for k, s in slots
        if k.kind in background
    ]
    comms.sort(key=lambda e: (*e[:4], e[4].kind))
    comms.reverse()
    merged: list[tuple[Key, Slot]] = []
    for key, slot in compute:
        until = slot.start if key in collective else slot.end - 1
        while comms and comms[-1][0] <= until:
            merged.append(comms.pop()[4:])
        merged.append((key, slot))
    return [*merged, *(entry[4:] for entry in reversed(comms))]


@lru_cache(maxsize=65536)
def held(shape: tuple[int, ...], dtype: str, layout: Layout, space: Space, workers: tuple[int, ...]) -> int:
    """Bytes of the largest part of a tensor that any of ``workers`` holds, at any time index."""
    numel = prod(shape)
    if _even(layout, space):
        for axis, state in layout.states:
            numel //= space.axis(axis).ways if isinstance(state, Shard) else 1
        return numel * ITEMSIZE[dtype]
    axes = tuple(name for name, state in layout.states if isinstance(state, Shard))
    parts = _parts_of(layout.mesh, axes, space, workers)
    return max(space.region(shape, layout, part).volume for part in parts) * ITEMSIZE[dtype]


@lru_cache(maxsize=256)
def _parts_of(mesh: str, axes: tuple[str, ...], space: Space, workers: tuple[int, ...]) -> list[dict[str, int]]:
    """The distinct coordinates along ``axes`` that ``workers`` have, at any time index."""
    times = [a for a in axes if space.axis(a).kind == "time"]
    coords = (space.mesh(mesh).coords(worker) for worker in workers)
    places = {tuple((a, c[a]) for a in axes if a not in times) for c in coords}
    indices = list(product(*(range(space.axis(a).ways) for a in times)))
    return [{**dict(place), **dict(zip(times, index, strict=True))} for place in sorted(places) for index in indices]


def _even(layout: Layout, space: Space) -> bool:
    """Whether all parts of a layout are equal."""
    ways: dict[tuple[int, int, int], int] = {}
    for name, state in layout.states:
        if isinstance(state, Shard):
            axis = space.axis(name)
            key = (state.dim, state.extent, state.inner)
            ways[key] = ways.get(key, 1) * axis.ways
            if axis.sizes is not None or state.extent % ways[key]:
                return False
    return True


def with_state(entry: Entry, state: tuple[StateTensor, ...], space: Space) -> Entry:
    """The entry with the plan's whole state in every program's peak: optimizer state is held while evaluating too.

    The inputs lie beside it all the while, so the peak is no less than state, arena and inputs.
    """
    programs: list[Program] = []
    for program in entry.programs:
        values = [program.values[v] for v in program.inputs.values()]
        tensors = [(entry.graph.tensor[v.tensor], v.layout) for v in values]
        inputs = sum(held(t.shape, t.dtype, layout, space, program.workers) for t, layout in tensors)
        mine = [s for s in state if s.memory == "device" and program.workers[0] in space.mesh(s.layout.mesh).devices]
        size = sum(aligned(held(s.shape, s.dtype, s.layout, space, program.workers)) for s in mine)
        programs.append(msgspec.structs.replace(program, peak=size + max(program.peak, program.arena + inputs)))
    return msgspec.structs.replace(entry, programs=tuple(programs))
