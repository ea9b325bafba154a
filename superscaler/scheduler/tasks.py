"""From lowered blocks to a Schedule: their costs, their dependencies, their order on every lane."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from superscaler.errors import PlanError, ScheduleError
from superscaler.ir.cluster import Cluster
from superscaler.ir.plan import Certificate
from superscaler.ir.program import Collective, Commit, Recv, Send
from superscaler.ir.schedule import Schedule, Slot
from superscaler.scheduler import constructive
from superscaler.scheduler.bounds import closed_form, heads_and_tails
from superscaler.scheduler.cost import held_bytes, move_seconds, op_seconds, slowest
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Job, Problem, makespan, topological_order
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.solve import solve
from superscaler.transforms.blocks import Body, Compute, Key, Lowered
from superscaler.transforms.usage import reads, writes

MICROBATCHED = ("forward", "backward", "weight", "recompute")
SPLITS_WEIGHT = frozenset({"solve", "zb_h1", "zb_v", "v_half", "v_min", "dualpipe_v"})
"""Schedules that place weight gradients as tasks of their own."""


@dataclass
class _Tasks:
    """The scheduling problem of a lowered entry, with its way back to blocks."""

    lowered: Lowered
    keys: list[Key]
    jobs: list[Job] = field(default_factory=list)
    at: list[tuple[list[int], int]] = field(default_factory=list)  # (blocks, micro-batch) of each job
    edges: list[tuple[int, int, int]] = field(default_factory=list)
    classes: dict[str, list[int]] = field(default_factory=dict)  # mesh -> device classes


def schedule(
    lowered: Lowered, cluster: Cluster, *, time_limit: float | None = None, profile: Profile | None = None
) -> Schedule:
    """When each block runs. The order is the TaskGraph's: a named schedule, or "solve". ``profile``: measured costs.

    Raises :class:`PlanError` if the blocks depend on each other in a cycle (stages that go back and forth).
    """
    tasks = _build(lowered, cluster if profile is None else profile.applied(cluster), profile)
    problem = Problem(tuple(tasks.jobs), tuple(tasks.edges), (None,) * _classes(tasks))
    name = lowered.tasks.order
    baseline_name = "1f1b" if name == "solve" else name
    woven = _woven(tasks)
    if woven:
        starts, baseline_name = list_schedule(problem, _weave(problem)), "woven 1f1b"
    else:
        starts = list_schedule(problem, _orders(tasks, baseline_name))
    if name == "solve":
        table = solve(problem, seed=lowered.tasks.seed, time_limit=time_limit, hint=starts)
        baseline, found, starts = makespan(problem, starts), table.certificate, table.starts
        certificate = Certificate(
            found.status, found.makespan, found.bound, found.gap, baseline, baseline_name,
            found.binding, found.seed, found.seconds,
        )  # fmt: skip
    else:
        certificate = _certify(problem, starts, baseline_name, lowered.tasks.seed)
    slots = [
        Slot(block, j, start, start + job.duration)
        for (blocks, j), job, start in zip(tasks.at, tasks.jobs, starts, strict=True)
        for block in blocks
    ]
    slots = _with_their_sends(tasks, slots)
    return Schedule(tuple(sorted(slots, key=lambda s: (s.start, s.end, s.block))), certificate)


def _woven(tasks: _Tasks) -> bool:
    """Whether a device takes part in several stages: no published order says in which turn."""
    stages = [tuple(tasks.classes[mesh]) for mesh in dict.fromkeys(tasks.lowered.tasks.stages)]
    members = [c for found in stages for c in found]
    return len(members) != len(set(members)) and tasks.lowered.tasks.microbatches > 1


def _weave(problem: Problem) -> list[float]:
    """Priorities for stages that share devices: what frees memory goes first, then earlier micro-batches.

    A forward counts as late as the micro-batches that may be in flight before it, so that as many are as a 1F1B
    pipeline holds.
    """
    heads, _ = heads_and_tails(problem)
    depth = max(job.stage for job in problem.jobs) + 1
    order = {"backward": 0, "weight": 0}
    longest = max(heads) + 1
    return [
        (job.microbatch - (depth if job.kind in order else 0)) * longest + heads[i]
        for i, job in enumerate(problem.jobs)
    ]


def _with_their_sends(tasks: _Tasks, slots: list[Slot]) -> list[Slot]:
    """Receives take place while their sends do."""
    comms: dict[int, int] = {}
    sender: dict[int, int] = {}
    for block, key in enumerate(tasks.keys):
        for step in tasks.lowered.bodies[key].steps:
            if isinstance(step, Send):
                comms[step.comm] = block
    for block, key in enumerate(tasks.keys):
        for step in tasks.lowered.bodies[key].steps:
            if isinstance(step, Recv):
                sender[block] = comms[step.comm]
    at = {(s.block, s.microbatch): s for s in slots}
    sent = {s: at[sender[s.block], s.microbatch] for s in slots if s.block in sender}
    return [Slot(s.block, s.microbatch, sent[s].start, sent[s].end) if s in sent else s for s in slots]


def _certify(problem: Problem, starts: tuple[int, ...], name: str, seed: int) -> Certificate:
    length, bound = makespan(problem, starts), closed_form(problem)
    status = "optimal" if length == bound.value else "constructive"
    gap = (length - bound.value) / length if length else 0.0
    return Certificate(status, length, bound.value, gap, length, name, bound.binding, seed, 0.0)


def _classes(tasks: _Tasks) -> int:
    return 1 + max((c for found in tasks.classes.values() for c in found), default=0)


def _build(lowered: Lowered, cluster: Cluster, profile: Profile | None) -> _Tasks:
    tasks = _Tasks(lowered, list(lowered.bodies))
    tasks.classes = _device_classes(lowered)
    count = lowered.tasks.microbatches
    first: dict[int, int] = {}
    together: dict[Key, int] = {}  # the blocks of one collective over several meshes are one job
    for block, key in enumerate(tasks.keys):
        body = lowered.bodies[key]
        if key.kind == "collective":
            joint = key._replace(mesh="")
            if joint in together:
                first[block] = together[joint]
                _join(tasks, first[block], block, key)
                continue
            together[joint] = len(tasks.jobs)
        duration = max(1, round(block_seconds(lowered, body, cluster, profile) * 1e6))
        first[block] = len(tasks.jobs)
        for j in range(count if body.over else 1):
            tasks.jobs.append(_job(tasks, key, body, duration, j))
            tasks.at.append(([block], j))
    _connect(tasks, first, count)
    return tasks


def _join(tasks: _Tasks, job: int, block: int, key: Key) -> None:
    """Let another block take part in a job, on its own devices' lanes."""
    had = tasks.jobs[job]
    more = tuple((c, "compute") for c in tasks.classes[key.mesh] if (c, "compute") not in had.lanes)
    tasks.jobs[job] = replace(had, lanes=(*had.lanes, *more))
    tasks.at[job][0].append(block)


def _device_classes(lowered: Lowered) -> dict[str, list[int]]:
    """Devices that belong to the same meshes behave alike: one class stands for all of them."""
    meshes = {key.mesh for key in lowered.bodies}
    member: dict[int, tuple[str, ...]] = {}
    for mesh in sorted(meshes):
        for device in lowered.tasks.space.mesh(mesh).devices:
            member[device] = (*member.get(device, ()), mesh)
    classes = {names: i for i, names in enumerate(dict.fromkeys(member[d] for d in sorted(member)))}
    return {mesh: [i for names, i in classes.items() if mesh in names] for mesh in meshes}


def _job(tasks: _Tasks, key: Key, body: Body, duration: int, j: int) -> Job:
    classes = tasks.classes[key.mesh]
    if body.lane == "compute":
        lanes = tuple((c, "compute") for c in classes)
        if key.kind == "forward" and body.over and key.level < _last_pass(tasks):
            return Job(classes[0], f"forward{key.level + 1}", key.stage, j, duration, lanes)
    elif key.kind == "recv":
        return Job(classes[0], "recv", key.stage, j, 0, ())
    else:
        lanes = tuple((c, f"{key.kind}:{key.tag.rpartition('>')[2]}") for c in classes)
    return Job(classes[0], key.kind, key.stage, j, duration, lanes)


def _last_pass(tasks: _Tasks) -> int:
    """The number of the forward pass that has a gradient; passes before it are recycling."""
    return max((key.level for key in tasks.keys if key.kind == "forward"), default=0)


def _connect(tasks: _Tasks, first: dict[int, int], count: int) -> None:
    """Edges from each block to the readers of what it writes, micro-batch by micro-batch."""
    writers: dict[int, list[int]] = {}
    sends: dict[int, int] = {}
    bodies = [tasks.lowered.bodies[key] for key in tasks.keys]
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
            _edges(tasks, first, count, other, block)


def _edges(tasks: _Tasks, first: dict[int, int], count: int, a: int, b: int) -> None:
    bodies = tasks.lowered.bodies
    many_a, many_b = bool(bodies[tasks.keys[a]].over), bool(bodies[tasks.keys[b]].over)
    if many_a and many_b:
        tasks.edges += [(first[a] + j, first[b] + j, 0) for j in range(count)]
    elif many_a:
        tasks.edges += [(first[a] + j, first[b], 0) for j in range(count)]
    elif many_b:
        tasks.edges += [(first[a], first[b] + j, 0) for j in range(count)]
    else:
        tasks.edges.append((first[a], first[b], 0))


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


def _orders(tasks: _Tasks, name: str) -> dict[tuple[int, str], list[int]]:
    """The order of each compute lane: what comes before the micro-batches, the named schedule, what comes after."""
    rank = _ranks(tasks, name)
    topological = _topological(tasks)
    lanes: dict[tuple[int, str], list[int]] = {}
    for i, job in enumerate(tasks.jobs):
        for lane in job.lanes:
            if lane[1] == "compute":
                lanes.setdefault(lane, []).append(i)
    after = {"reduce": 2, "optimizer": 2, "collective": 2}

    def position(i: int) -> tuple[int, float, int]:
        job = tasks.jobs[i]
        when = after.get(job.kind, 1 if tasks.lowered.bodies[tasks.keys[tasks.at[i][0][0]]].over else 0)
        if (job.kind in MICROBATCHED or job.kind.startswith("forward")) and when == 0:
            when = 1
        return when, rank.get((job.kind, job.stage, job.microbatch), 0.0) if when == 1 else 0.0, topological[i]

    return {lane: sorted(found, key=position) for lane, found in lanes.items()}


def _ranks(tasks: _Tasks, name: str) -> dict[tuple[str, int, int], float]:
    stages = len(tasks.lowered.tasks.stages)
    count = tasks.lowered.tasks.microbatches
    if count == 1 or stages == 0:
        return {}
    devices = len({tuple(c) for c in tasks.classes.values()})
    schedule_ = constructive.find(name)
    placement = "linear" if stages == devices or "v" not in schedule_.placements else schedule_.placements[0]
    wide = stages if placement == "linear" else devices
    shape = constructive.Shape(stages, wide, count, placement, max(1, schedule_.passes))
    found: dict[tuple[str, int, int], float] = {}
    for steps in constructive.orders(name, shape):
        for position, (kind, stage, j) in enumerate(steps):
            found[kind, stage, j] = float(position)
    return found


def _topological(tasks: _Tasks) -> list[int]:
    try:
        order = topological_order(tasks.jobs, ((a, b) for a, b, _ in tasks.edges))
    except ScheduleError as e:
        raise PlanError(
            "the stages depend on each other in a cycle", *str(e).splitlines(), hint="cut the model in order"
        ) from e
    place = [0] * len(order)
    for i, job in enumerate(order):
        place[job] = i
    return place


def block_seconds(lowered: Lowered, body: Body, cluster: Cluster, profile: Profile | None = None) -> float:
    """Predicted seconds of one instance of a block: its ops one after another, and its synchronous collectives."""
    tasks = lowered.tasks
    mesh = tasks.space.mesh(body.key.mesh)
    device = cluster.device(mesh.devices[0])
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
