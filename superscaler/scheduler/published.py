"""The published schedules, in a few lines each.

Those that the literature defines by a heuristic or a building block (the zero-bubble ones) are made the same way here,
for tasks of equal cost; those that it defines by counts are written out.
"""

from __future__ import annotations

from collections.abc import Sequence

from superscaler.errors import ScheduleError
from superscaler.scheduler.constructive import Orders, Shape, Step, dependencies, named
from superscaler.scheduler.flow import FORWARD, WEIGHT, Flow, Starts
from superscaler.scheduler.greedy import Policy, greedy, tuning
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.pattern import PERIOD, v_patterns
from superscaler.scheduler.problem import Job, Problem
from superscaler.scheduler.squeeze import squeeze
from superscaler.scheduler.unroll import unroll

_KINDS = ("forward", "backward", "weight")
_ENOUGH = 4
"""Micro-batches per device that show both ramps and the steady state."""


@named("gpipe", placements=("linear", "interleaved", "v"), weight_apart=False)
def gpipe(shape: Shape) -> Orders:
    """All forwards, then all backwards (Huang et al. 2019)."""
    result: Orders = []
    for device in range(shape.devices):
        mine = shape.stages_of(device)
        forwards: list[Step] = [("forward", s, j) for s in mine for j in range(shape.microbatches)]
        result.append(forwards + [x for s in reversed(mine) for j in range(shape.microbatches) for x in _back(s, j)])
    return result


@named("1f1b", weight_apart=False)
def one_forward_one_backward(shape: Shape) -> Orders:
    """After P-d forwards on device d, a backward after each forward (Narayanan et al. 2019, PipeDream-Flush)."""
    result: Orders = []
    for device in range(shape.devices):
        warm = min(shape.devices - device, shape.microbatches)
        steps: list[Step] = [("forward", device, j) for j in range(warm)]
        for j in range(shape.microbatches):
            steps += _back(device, j)
            if j + warm < shape.microbatches:
                steps.append(("forward", device, j + warm))
        result.append(steps)
    return result


@named("interleaved_1f1b", placements=("interleaved",), weight_apart=False)
def interleaved(shape: Shape) -> Orders:
    """1F1B over several stages per device, P micro-batches of each by turns (Narayanan et al. 2021, Megatron-LM)."""
    devices, chunks = shape.devices, shape.stages // shape.devices
    if shape.microbatches % devices or shape.stages % devices:
        raise ScheduleError(
            f"interleaved_1f1b takes micro-batches and stages in groups of {devices} devices",
            f"there are {shape.microbatches} micro-batches and {shape.stages} stages",
            hint=f"multiples of {devices}, or order='solve'",
        )
    total = chunks * shape.microbatches
    turns = [((k // devices) % chunks, k // (devices * chunks) * devices + k % devices) for k in range(total)]
    result: Orders = []
    for device in range(devices):
        forwards: list[Step] = [("forward", chunk * devices + device, j) for chunk, j in turns]
        backwards = [_back((chunks - 1 - chunk) * devices + device, j) for chunk, j in turns]
        warm = min(total, 2 * (devices - device - 1) + (chunks - 1) * devices + 1)
        steps = forwards[:warm]
        for k, pair in enumerate(backwards):
            steps += pair + forwards[warm + k : warm + k + 1]
        result.append(steps)
    return result


@named("chimera", placements=("bidirectional",), weight_apart=False)
def chimera(shape: Shape) -> Orders:
    """Half of the micro-batches from either end, each stage on two devices (Li & Hoefler 2021).

    Devices d and P-1-d do the same at the same time, in either direction, so a pair of them is as one device of a V.
    """
    if shape.devices % 2 or shape.microbatches % 2:
        raise ScheduleError(
            f"chimera takes even numbers: not {shape.devices} devices and {shape.microbatches} micro-batches",
            hint="even ones, or order='solve'",
        )
    half = shape.microbatches // 2
    pairs = _listed(Shape(shape.stages, shape.devices // 2, half, "v"), in_flight=shape.devices // 2)
    turns = [pairs[min(d, shape.devices - 1 - d)] for d in range(shape.devices)]
    return [[(kind, s, j if s == d else j + half) for kind, s, j in steps] for d, steps in enumerate(turns)]


@named("zb_h1")
def zb_h1(shape: Shape) -> Orders:
    """1F1B's memory, with weight gradients where it would wait (Qi et al. 2023, ZB-H1)."""
    flow = _unit_flow(shape, shape.devices)
    return _orders_of(shape, greedy(flow, tuning(flow, Policy("forward first", 1.0))))


@named("zb_v", placements=("v",))
def zb_v(shape: Shape) -> Orders:
    """Two half stages per device in a V at 1F1B's bytes: no bubble in the steady state (Qi et al. 2024, ZB-V)."""
    flow = _unit_flow(shape, 2 * shape.devices)
    tries = [Policy("forward first", reach, share * shape.devices, 0.3) for reach, share in ((0.7, 0.25), (0.6, 0.5))]
    return _orders_of(shape, min((greedy(flow, tuning(flow, policy)) for policy in tries), key=flow.makespan))


@named("v_half", placements=("v",))
def v_half(shape: Shape) -> Orders:
    """About half of 1F1B's activations, P + 2 half stages (Qi et al. 2024)."""
    return _from_pattern(shape, shape.devices + 2)


@named("v_min", placements=("v",))
def v_min(shape: Shape) -> Orders:
    """About a third of 1F1B's activations, 2 (P + 4) / 3 half stages (Qi et al. 2024)."""
    return _from_pattern(shape, -(-2 * (shape.devices + 4) // 3))


@named("dualpipe_v", placements=("v",))
def dualpipe_v(shape: Shape) -> Orders:
    """Forwards of one half stage against backwards of the other (DeepSeek-AI 2025, the V form of DualPipe)."""
    if shape.microbatches < 2 * shape.devices:
        raise ScheduleError(
            f"dualpipe_v needs {2 * shape.devices} micro-batches on {shape.devices} devices, not {shape.microbatches}",
            hint="more micro-batches, or zb_v",
        )
    return [_DualPipe(shape, device).steps for device in range(shape.devices)]


class _DualPipe:
    """The eight phases of one device; ``late`` weight gradients wait in a queue."""

    def __init__(self, shape: Shape, device: int) -> None:
        self.stage = (device, 2 * shape.devices - 1 - device)
        self.done = {("forward", 0): 0, ("forward", 1): 0, ("backward", 0): 0, ("backward", 1): 0}
        self.late: list[Step] = []
        self.steps: list[Step] = []
        after = shape.devices - 1 - device
        self.repeat(2 * after, "F0")
        self.repeat(device + 1, "F0 F1")
        self.repeat(after, "b1 W F1")
        self.repeat(shape.microbatches - 2 * shape.devices + device + 1, "F0 B1 F1 B0")
        self.repeat(after, "B1 F1 B0")
        self.repeat((device + 1) // 2, "B1 B0")
        self.repeat(device + 1 - (device + 1) // 2, "b1 b0")
        self.repeat(after, "W b0")
        self.repeat(len(self.late), "W")

    def repeat(self, times: int, what: str) -> None:
        """``F0``: forward of the upper stage; ``B1``: both gradients of the lower one; ``b1``: its weights later."""
        for _ in range(times):
            for word in what.split():
                self.take(word)

    def take(self, word: str) -> None:
        if word == "W":
            self.steps.append(self.late.pop(0))
            return
        kind, half = "forward" if word[0] == "F" else "backward", int(word[1])
        j, stage = self.done[kind, half], self.stage[half]
        self.done[kind, half] += 1
        self.steps.append((kind, stage, j))
        if word[0] == "B":
            self.steps.append(("weight", stage, j))
        if word[0] == "b":
            self.late.append(("weight", stage, j))


def _back(stage: int, j: int) -> list[Step]:
    """A backward that is not split: both gradients at once."""
    return [("backward", stage, j), ("weight", stage, j)]


def _unit_flow(shape: Shape, capacity: int) -> Flow:
    device = tuple(shape.device(s) for s in range(shape.stages))
    none = (0,) * shape.stages
    return Flow(device, ((1,) * shape.stages,) * 3, none, none, (capacity,) * shape.devices, shape.microbatches)


def _orders_of(shape: Shape, starts: Starts) -> Orders:
    """The steps of each device in order of start."""
    timed = [
        (starts[kind][s][j], shape.device(s), (_KINDS[kind], s, j))
        for kind in range(FORWARD, WEIGHT + 1)
        for s in range(shape.stages)
        for j in range(shape.microbatches)
    ]
    return [[step for _, d, step in sorted(timed) if d == device] for device in range(shape.devices)]


def _from_pattern(shape: Shape, capacity: int) -> Orders:
    """The shortest schedule of any pattern that fits, its ramps squeezed; found on few micro-batches, then unrolled."""
    flow = _unit_flow(shape, capacity)
    few = flow.with_microbatches(min(flow.microbatches, _ENOUGH * shape.devices))
    patterns = v_patterns(shape.devices, capacity)
    tried = [(starts, p) for p in patterns if (starts := unroll(few, p, PERIOD)) is not None]
    if not tried:
        raise ScheduleError(
            f"no uniform pattern of a V over {shape.devices} devices holds {capacity} activations", hint="order='solve'"
        )
    alike = {few.makespan(starts): (starts, p) for starts, p in reversed(tried)}  # of one length mostly one schedule
    _, pattern = min(alike.values(), key=lambda each: few.makespan(squeeze(few, each[0])))
    whole = unroll(flow, pattern, PERIOD)
    assert whole is not None  # it repeats what fits
    return _orders_of(shape, squeeze(flow, whole))


def _listed(shape: Shape, in_flight: int) -> Orders:
    """First come first served, whole backwards first; ``in_flight`` micro-batches at most."""
    jobs: list[Job] = []
    index: dict[Step, int] = {}
    edges: list[tuple[int, int, int]] = []
    for j in range(shape.microbatches):
        for stage in range(shape.stages):
            for kind in shape.kinds:
                index[kind, stage, j] = len(jobs)
                device = shape.device(stage, j)
                jobs.append(Job(device, kind, stage, j, 1, ((device, "compute"),)))
        edges += [(index[a], index[b], 0) for a, b in dependencies(shape, j)]
    first, last = shape.kinds[0], ("backward", 0)
    late = range(shape.microbatches - in_flight)
    edges += [(index[(*last, j)], index[first, 0, j + in_flight], 0) for j in late]
    urgency = {kind: place for place, kind in enumerate(("weight", "backward", *_most_urgent(shape)))}
    starts = list_schedule(
        Problem(tuple(jobs), tuple(edges), (None,) * shape.devices),
        [urgency[job.kind] * shape.microbatches + job.microbatch for job in jobs],
    )
    order = sorted(range(len(jobs)), key=lambda i: (starts[i], i))
    steps = [(jobs[i].device, (jobs[i].kind, jobs[i].stage, jobs[i].microbatch)) for i in order]
    return [[step for d, step in steps if d == device] for device in range(shape.devices)]


def _most_urgent(shape: Shape) -> Sequence[str]:
    """The later pass first: it is nearer to giving memory back."""
    return shape.kinds[-3::-1]
