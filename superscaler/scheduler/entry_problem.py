"""The scheduling problem of a lowered entry: a job for each instance of a block, and the way back to the blocks.

Memory is counted as the workers hold it: a value that outlives its task is taken at the start of the task that makes
it and given back at the end of the last one that touches it, micro-batch by micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from superscaler.errors import PlanError, ScheduleError
from superscaler.ir.cluster import Cluster, Device
from superscaler.ir.program import Collective, Commit, Offload, Recv, Send
from superscaler.scheduler.cost import held_bytes, microseconds, move_seconds, op_seconds, slowest
from superscaler.scheduler.problem import Edge, Job, Problem, topological_order
from superscaler.scheduler.profile import Profile
from superscaler.transforms.assemble import held
from superscaler.transforms.blocks import FETCH, RETURN, Body, Compute, Key, Lowered
from superscaler.transforms.lifetimes import aligned
from superscaler.transforms.usage import reads, writes

AHEAD = 2
"""Layers whose state may be on its way from host memory, or back, at once."""


@dataclass
class EntryProblem:
    """Jobs and edges of an entry. Devices of the problem are classes: devices that belong to the same meshes act alike.

    ``at[i]``: the blocks of job i, and their micro-batch. ``classes``: mesh -> classes. ``fixed``: bytes of each class
    that are held through all micro-batches (sums being formed over them, what all of them read).
    """

    lowered: Lowered
    keys: list[Key]
    classes: dict[str, list[int]]
    jobs: list[Job] = field(default_factory=list[Job])
    at: list[tuple[list[int], int]] = field(default_factory=list[tuple[list[int], int]])
    edges: list[Edge] = field(default_factory=list[Edge])
    fixed: dict[int, int] = field(default_factory=dict[int, int])
    lasting: dict[int, int] = field(default_factory=dict[int, int])
    most: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def devices(self) -> int:
        """How many classes of devices there are."""
        return 1 + max((c for found in self.classes.values() for c in found), default=0)

    @cached_property
    def passes(self) -> int:
        """How often a micro-batch passes the stages forward; passes before the last are recycling."""
        return 1 + max((key.level for key in self.keys if key.kind == "forward"), default=0)

    def problem(self, memory: Mapping[int, int] | None = None) -> Problem:
        """The problem, within ``memory`` bytes of arena per class (None, or a class left out: unlimited)."""
        room = {c: limit - self.fixed.get(c, 0) for c, limit in (memory or {}).items()}
        return Problem(tuple(self.jobs), tuple(self.edges), tuple(room.get(c) for c in range(self.devices)))

    def once(self, job: int) -> bool:
        """Whether a job runs once per step, not per micro-batch."""
        return self.jobs[job].microbatch < 0

    @cached_property
    def topological(self) -> list[int]:
        """The place of each job in an order in which every edge points forward."""
        try:
            order = topological_order(self.jobs, ((a, b) for a, b, _ in self.edges))
        except ScheduleError as e:
            said = self.lowered.tasks.before or self.lowered.tasks.sequence
            raise PlanError(
                "the tasks depend on each other in a cycle", e.what, *e.details,
                hint="drop one of the orders" if said else "cut the model in order",
            ) from e  # fmt: skip
        place = [0] * len(order)
        for i, job in enumerate(order):
            place[job] = i
        return place


def entry_problem(lowered: Lowered, cluster: Cluster, profile: Profile | None = None) -> EntryProblem:
    """The problem of ``lowered`` on ``cluster``, with costs as measured (``profile``) or as its figures predict."""
    found = EntryProblem(lowered, list(lowered.bodies), _device_classes(lowered))
    first: dict[int, int] = {}
    together: dict[Key, int] = {}  # the blocks of one collective over several meshes are one job
    for block, key in enumerate(found.keys):
        body = lowered.bodies[key]
        if key.kind == "collective":
            joint = key._replace(mesh="")
            if joint in together:
                first[block] = together[joint]
                _join(found, first[block], block, key)
                continue
            together[joint] = len(found.jobs)
        seconds = _block_seconds(lowered, body, cluster, profile)
        duration = microseconds(seconds, f"the {key.kind} of stage {key.stage}")
        first[block] = len(found.jobs)
        for j in range(lowered.tasks.microbatches) if body.over else (-1,):
            found.jobs.append(_job(found, key, body, duration, j))
            found.at.append(([block], max(j, 0)))
    _connect(found, first)
    _as_ordered(found)
    _take_turns(found, first)
    _hold(found, first)
    return found


def _join(found: EntryProblem, job: int, block: int, key: Key) -> None:
    """Let another block take part in a job, on its own devices' lanes."""
    had = found.jobs[job]
    more = tuple((c, "compute") for c in found.classes[key.mesh] if (c, "compute") not in had.lanes)
    found.jobs[job] = replace(had, lanes=(*had.lanes, *more))
    found.at[job][0].append(block)


def _device_classes(lowered: Lowered) -> dict[str, list[int]]:
    """Devices that belong to the same meshes behave alike: one class stands for all of them."""
    meshes = {key.mesh for key in lowered.bodies}
    member: dict[int, tuple[str, ...]] = {}
    for mesh in sorted(meshes):
        for device in lowered.tasks.space.mesh(mesh).devices:
            member[device] = (*member.get(device, ()), mesh)
    classes = {names: i for i, names in enumerate(dict.fromkeys(member[d] for d in sorted(member)))}
    return {mesh: [i for names, i in classes.items() if mesh in names] for mesh in meshes}


def _job(found: EntryProblem, key: Key, body: Body, duration: int, j: int) -> Job:
    classes = found.classes[key.mesh]
    if body.lane == "compute":
        lanes = tuple((c, "compute") for c in classes)
        if key.kind == "forward" and body.over and key.level < found.passes - 1:
            return Job(classes[0], f"forward{key.level + 1}", key.stage, j, duration, lanes)
    elif key.kind == "recv":
        return Job(classes[0], "recv", key.stage, j, 0, ())
    elif body.lane == "transfer":
        lanes = tuple((c, "transfer") for c in classes)
    else:
        lanes = tuple((c, f"{key.kind}:{key.tag.rpartition('>')[2]}") for c in classes)
    return Job(classes[0], key.kind, key.stage, j, duration, lanes)


# --- dependencies ----------------------------------------------------------------------------------------------------


def _connect(found: EntryProblem, first: dict[int, int]) -> None:
    """Edges from each block to the readers of what it writes, micro-batch by micro-batch."""
    writers: dict[int, list[int]] = {}
    sends: dict[int, int] = {}
    bodies = [found.lowered.bodies[key] for key in found.keys]
    readers: dict[int, list[int]] = {}
    for block, body in enumerate(bodies):
        for value in _read(body):
            readers.setdefault(value, []).append(block)
        for value in _written(body) - _committed(body):
            writers.setdefault(value, []).append(block)
        for step in body.steps:
            if isinstance(step, Send):
                sends[step.comm] = block
    for block, body in enumerate(bodies):
        before = {w for value in _read(body) for w in _near(bodies, body, writers.get(value, []))}
        before |= {reader for value in _committed(body) for reader in readers.get(value, ())}
        before |= {sends[s.comm] for s in body.steps if isinstance(s, Recv)}
        for other in sorted(b for b in before if first[b] != first[block]):
            _edges(found, first, other, block)
    for a, b in _sequenced(found):
        _edges(found, first, a, b)


def _take_turns(found: EntryProblem, first: dict[int, int]) -> None:
    """Let a layer's state be fetched only when that of all but the last few layers before has been brought back."""
    for mesh in found.classes:
        mine = [(block, key) for block, key in enumerate(found.keys) if key.kind == "transfer" and key.mesh == mesh]
        back = {key.tag.removeprefix(RETURN): block for block, key in mine if key.tag.startswith(RETURN)}
        fetched = [(b, back.get(key.tag.removeprefix(FETCH))) for b, key in mine if key.tag.startswith(FETCH)]
        for (_, returned), (block, _) in zip(fetched, fetched[AHEAD:], strict=False):
            if returned is not None:
                found.edges.append((first[returned], first[block], 0))


def _sequenced(found: EntryProblem) -> set[tuple[int, int]]:
    """The blocks that hold ops which the plan wants one before the other, where these are not in one block."""
    tasks = found.lowered.tasks
    if not tasks.sequence:
        return set()
    homes: dict[str, set[int]] = {}
    for block, key in enumerate(found.keys):
        for step in found.lowered.bodies[key].steps:
            if isinstance(step, Compute):
                op = tasks.graph.ops[step.op].name
                if key.kind == tasks.placed[op].kind:
                    homes.setdefault(op, set()).add(block)

    def blocks(ops: frozenset[str]) -> set[int]:
        return {block for op in ops for block in homes.get(op, ())}

    return {(a, b) for first, then in tasks.sequence for a in blocks(first) for b in blocks(then) if a != b}


def _edges(found: EntryProblem, first: dict[int, int], a: int, b: int) -> None:
    bodies, count = found.lowered.bodies, found.lowered.tasks.microbatches
    many_a, many_b = bool(bodies[found.keys[a]].over), bool(bodies[found.keys[b]].over)
    for j in range(count if many_a or many_b else 1):
        found.edges.append((first[a] + (j if many_a else 0), first[b] + (j if many_b else 0), 0))


def _read(body: Body) -> set[int]:
    found: set[int] = set()
    for step in body.steps:
        if isinstance(step, Compute):
            found.update(step.ins)
        else:
            found.update(v for v in reads(step) if v not in writes(step))
    return found


def _near(bodies: list[Body], reader: Body, writers: list[int]) -> list[int]:
    """Of the blocks that all write a value (a reduction over several meshes), the one on the reader's own mesh."""
    own = [w for w in writers if bodies[w].key.mesh == reader.key.mesh]
    return own or writers


def _committed(body: Body) -> set[int]:
    """State that the block gives its new content: after all that read the old."""
    return {step.state for step in body.steps if isinstance(step, Commit)}


def _written(body: Body) -> set[int]:
    found: set[int] = set()
    for step in body.steps:
        found.update(step.outs if isinstance(step, Compute) else writes(step))
    return found


def _as_ordered(found: EntryProblem) -> None:
    """Edges between tasks that the plan puts in order; :class:`PlanError` unless one worker runs both."""
    place = {(job.kind, job.stage, job.microbatch): i for i, job in enumerate(found.jobs)}
    for pair in found.lowered.tasks.before:
        for turn in pair:
            if turn not in place:
                known = ", ".join(sorted({k for k, _, _ in place if k in ("forward", "backward", "weight")}))
                raise PlanError(
                    f"order: the plan has no task {turn}",
                    f"it has {known} of {len(found.lowered.tasks.stages)} stages and "
                    f"{found.lowered.tasks.microbatches} micro-batches",
                    hint="(kind, stage, micro-batch); weight gradients are tasks of their own in zero-bubble schedules",
                )
        a, b = (place[turn] for turn in pair)
        if not set(found.jobs[a].lanes) & set(found.jobs[b].lanes):
            raise PlanError(
                f"order: {pair[0]} and {pair[1]} run on different devices", hint="order tasks of one device"
            )
        found.edges.append((a, b, 0))


# --- memory ----------------------------------------------------------------------------------------------------------


def _hold(found: EntryProblem, first: dict[int, int]) -> None:
    """Give the jobs of the micro-batches the bytes that they take and give back; what all of them share is fixed.

    What a mesh of several classes holds counts on the first of them.
    """
    lowered = found.lowered
    touching: dict[int, list[int]] = defaultdict(list)
    for block, key in enumerate(found.keys):
        for value in _read(lowered.bodies[key]) | _written(lowered.bodies[key]):
            touching[value].append(block)
    apart = {*lowered.state.values(), *lowered.inputs.values()}
    results = {*lowered.outputs.values(), *lowered.gradients.values()}
    takes, gives = [0] * len(found.jobs), [0] * len(found.jobs)
    for number, blocks in touching.items():
        many = [b for b in blocks if lowered.bodies[found.keys[b]].over]
        instances = lowered.tasks.microbatches if lowered.values[number].over else 1
        size = _size(lowered, number) if many and number not in apart else 0
        if not size or (len(blocks) == 1 and lowered.values[number].over and number not in results):
            continue
        if not lowered.values[number].over or len(many) < len(blocks) or number in results:
            c = found.classes[lowered.values[number].layout.mesh][0]
            found.fixed[c] = found.fixed.get(c, 0) + size * instances
            continue
        start, end = _ends(found, first, many)
        for j in range(instances):
            takes[first[start] + j] += size
            gives[first[end] + j] += size
        stage = found.keys[end].stage
        if found.keys[end].kind in ("backward", "weight"):
            found.most[stage] = found.most.get(stage, 0) + size
        if found.keys[start].kind in ("forward", "recv") and found.keys[end].kind == "weight":
            found.lasting[stage] = found.lasting.get(stage, 0) + size
    found.jobs = [
        replace(job, acquire=take, release=give) if take or give else job
        for job, take, give in zip(found.jobs, takes, gives, strict=True)
    ]


def _ends(found: EntryProblem, first: dict[int, int], blocks: list[int]) -> tuple[int, int]:
    """The first and the last of the blocks that touch a value; of two that may be last, the one that computes."""

    def late(block: int) -> tuple[bool, int]:
        return found.lowered.bodies[found.keys[block]].lane == "compute", found.topological[first[block]]

    return min(blocks, key=lambda b: found.topological[first[b]]), max(blocks, key=late)


def _size(lowered: Lowered, number: int) -> int:
    value = lowered.values[number]
    tensor = lowered.tasks.graph.tensor[value.tensor]
    workers = lowered.tasks.space.mesh(value.layout.mesh).devices
    return aligned(held(tensor.shape, tensor.dtype, value.layout, lowered.tasks.space, workers))


# --- costs -----------------------------------------------------------------------------------------------------------


def _block_seconds(lowered: Lowered, body: Body, cluster: Cluster, profile: Profile | None) -> float:
    """Predicted seconds of one instance of a block: its ops one after another, and its synchronous collectives.

    On devices of several kinds: what the slowest of them takes, which the others wait for.
    """
    kinds = {cluster.devices[device] for device in lowered.tasks.space.mesh(body.key.mesh).devices}
    return max(_seconds_on(cluster.kinds[kind], lowered, body, cluster, profile) for kind in kinds)


def _seconds_on(device: Device, lowered: Lowered, body: Body, cluster: Cluster, profile: Profile | None) -> float:
    tasks = lowered.tasks
    total = 0.0
    for step in body.steps:
        if isinstance(step, Compute):
            total += op_seconds(tasks.graph.ops[step.op], tasks.graph, step.splits, tasks.space, device, profile)
        elif isinstance(step, Collective):
            value = lowered.values[step.src]
            size = held_bytes(value.tensor, value.layout, tasks.graph, tasks.space)
            group = lowered.groupings[step.grouping].groups[0]
            size *= len(group) if step.kind == "all_gather" else 1
            total += move_seconds(step.kind, size, group, cluster)
        elif isinstance(step, Send):
            total += _send_seconds(lowered, step, cluster)
        elif isinstance(step, Offload) or (isinstance(step, Commit) and body.lane == "transfer"):
            value = lowered.values[step.src]
            size = held_bytes(value.tensor, value.layout, tasks.graph, tasks.space)
            total += cluster.host.latency + size / cluster.host.bandwidth
    return total


def _send_seconds(lowered: Lowered, step: Send, cluster: Cluster) -> float:
    value = lowered.values[step.src]
    size = held_bytes(value.tensor, value.layout, lowered.tasks.graph, lowered.tasks.space)
    pieces = lowered.routes[step.route].pieces
    first = next((p for p in pieces if p.source != p.destination), None)
    if first is None:
        return 0.0
    link = slowest((first.source, first.destination), cluster)
    return link.latency + size / link.bandwidth
