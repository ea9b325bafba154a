"""Measuring a profile: a plan's ops one by one, its task bodies as its workers run them, and what device and links do.

Task bodies are rehearsed: one worker of each role runs its Programs alone on zeros, and communication takes no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import torch
from torch import Tensor

from superscaler.errors import PlanError
from superscaler.ir.cluster import DEVICES, Device
from superscaler.ir.graph import Graph, Op
from superscaler.ir.plan import Plan
from superscaler.ir.program import Call, Program
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.part import part_of_op
from superscaler.ir.rules.rule import Splits, op_layouts
from superscaler.runtime.comm import Comm
from superscaler.runtime.gaps import Times, course, gaps
from superscaler.runtime.ops import DTYPES, bind, function, set_device
from superscaler.runtime.rehearsal import ALONE, Rehearsal
from superscaler.runtime.worker import WorkerOptions, make_worker
from superscaler.scheduler.cost import VIEWS
from superscaler.scheduler.keys import Keys, op_key
from superscaler.scheduler.machine import this_machine
from superscaler.scheduler.profile import Profile

Announce = Callable[[str], None]
_LEAST = 0.002  # seconds that repetitions of an op take together
_LONG = 0.5  # and after which two of them will do
_LEAST_RUN = 0.5  # and those of a role's Program
_LONG_RUN = 6.0  # and after which a quarter of them will do
_MOST = 200  # repetitions


def measure(plan: Plan, *, repeats: int = 20, links: bool = True, progress: Announce = lambda text: None) -> Profile:
    """The profile of this machine as far as ``plan`` needs it: see :class:`Profile`.

    ``repeats``: how often task bodies run at least; a quarter of it once those of a worker have taken 6 seconds.
    ``links``: start processes that measure what is between workers, if the plan has several. Raises
    :class:`PlanError` if a worker does not fit into this machine's memory.
    """
    machine = this_machine(plan.workers)
    kind = "cpu" if machine.kind == "cpu" else "cuda"
    before = torch.get_num_threads()
    if kind == "cpu":
        torch.set_num_threads(machine.threads)
    try:
        with torch.no_grad():
            set_device(torch.device(kind))
            progress("measuring the device")
            device = _device(kind, machine.kind)
            progress("measuring ops")
            ops = measure_ops(plan, torch.device(kind))
            progress("measuring task bodies")
            bodies = measure_blocks(plan, WorkerOptions(kind), repeats)
    except torch.OutOfMemoryError as e:
        raise PlanError(
            "a worker of the plan does not fit into this machine",
            str(e).partition("\n")[0],
            hint="a plan for more devices, or more micro-batches",
        ) from e
    finally:
        torch.set_num_threads(before)
    blocks, link, post = bodies.seconds, None, bodies.posting
    if links and plan.workers > 1 and (kind == "cpu" or torch.cuda.device_count() > 1):
        from superscaler.runtime.links import measure_link

        progress("measuring the link")
        link = measure_link(kind, plan.workers)
    moves: dict[str, float] = {}
    crowd: dict[int, float] = {}
    if links and plan.workers > 1 and kind == "cpu":
        from superscaler.runtime.crowd import measure_crowd

        progress("measuring workers together")
        together = measure_crowd(plan)
        blocks = together.leveled(plan, blocks)
        moves, crowd, post = together.moves, together.slowdown, together.post
    return Profile(machine, device, link, ops, blocks, post, moves, crowd)


# --- ops --------------------------------------------------------------------------------------------------------------


def measure_ops(plan: Plan, device: torch.device) -> dict[str, float]:
    """Seconds of every distinct part of an op that a plan runs, at the first of its parts."""
    found: dict[str, float] = {}
    for graph, op, splits in _parts(plan):
        if op.target in VIEWS or op.target.startswith("superscaler.sleep"):
            continue
        key = op_key(op, graph, splits, plan.space)
        if key not in found:
            found[key] = _seconds(_call(plan, graph, op, splits, device), device)
    return found


def _parts(plan: Plan) -> Iterator[tuple[Graph, Op, Splits]]:
    for entry in plan.entries.values():
        for program in entry.programs:
            for call in (s for block in program.blocks for s in block.steps if isinstance(s, Call)):
                for row in entry.definitions[call.definition].rows:
                    yield entry.graph, entry.graph.ops[call.base + row.offset], row.splits


def _call(plan: Plan, graph: Graph, op: Op, splits: Splits, device: torch.device) -> Callable[[], Any]:
    rule, at = rule_for(op, graph), dict.fromkeys((a for a, _ in splits), 0)
    layouts, _ = op_layouts(rule, splits, "", plan.space)
    inputs: list[Tensor] = []
    for name, layout in zip(op.inputs, layouts, strict=True):
        tensor = graph.tensor[name]
        shape = plan.space.region(tensor.shape, layout, at).shape
        inputs.append(torch.zeros(shape, dtype=DTYPES[tensor.dtype], device=device))
    part = part_of_op(rule, op, splits, plan.space, at, graph.tensor[op.outputs[0]].shape)
    args, kwargs = bind(op.args, inputs, msgspec.structs.replace(part, seed=(0, 0)))
    run = function(op.target)
    return lambda: run(*args, **kwargs)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """What a call takes: of repetitions that take :data:`_LEAST` together, after two that do not count."""
    found: list[float] = []
    for number in range(_MOST):
        start = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            found.append(perf_counter() - start)
        if len(found) >= (7 if sum(found) < _LONG else 2) and sum(found) > _LEAST:
            break
    return typical(found)


def typical(times: Sequence[float]) -> float:
    """The lower quartile: other processes can only make a time longer."""
    return sorted(times)[(len(times) - 1) // 4]


# --- task bodies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bodies:
    """``seconds`` of every distinct task body, by key; ``posting``: of a worker's own time to come to a communication,
    without what the communication itself takes of it."""

    seconds: dict[str, float]
    posting: float


def measure_blocks(plan: Plan, options: WorkerOptions, repeats: int) -> Bodies:
    """What a plan's workers take for their tasks, without what they communicate."""
    found: dict[str, list[float]] = {}
    between: list[float] = []
    for index in sorted({program.workers[0] for entry in plan.entries.values() for program in entry.programs}):
        rehearsal = Rehearsal(ALONE)
        comm: Comm = rehearsal
        worker = make_worker(plan, index, comm, options)
        try:
            for name, execution in worker.entries.items():
                keys, tasks = Keys(plan, plan.entries[name], execution.program), course(execution)
                rehearsal.run([execution])  # the first one does not count
                start = perf_counter()
                for number in range(max(_MOST, repeats)):
                    if _enough(number, repeats, perf_counter() - start):
                        break
                    rehearsal.run([execution])
                    times = worker.times(name)
                    _note(found, execution.program, keys, times)
                    between += [took / len(gap.posts) for gap, took in gaps(tasks, times, []) if gap.posts]
        finally:
            worker.close()
    # The median, not the least: a step is made of tasks as they mostly are.
    posting = median(between) if between else 0.0
    return Bodies({key: median(times) for key, times in found.items()}, posting)


def _enough(runs: int, repeats: int, seconds: float) -> bool:
    """Whether a Program has run for long: the speed of a machine may change within seconds."""
    least = repeats if seconds < _LONG_RUN else -(-repeats // 4)
    return runs >= least and seconds > _LEAST_RUN


def _note(found: dict[str, list[float]], program: Program, keys: Keys, times: Times) -> None:
    for item, (start, end) in zip(program.order, times, strict=True):
        if program.blocks[item.block].lane == "compute":
            found.setdefault(keys.block(item.block, item.microbatch), []).append((end - start) / 1e9)


# --- the device -------------------------------------------------------------------------------------------------------


def _device(device: str, kind: str) -> Device:
    """What the device does: products of large matrices by dtype, sums of long vectors, and ops on nothing."""
    at = torch.device(device)
    base = DEVICES.get(kind, DEVICES["cpu"])
    size = 4096 if device == "cuda" else 512
    flops: dict[str, float] = {}
    for name in ("float32", "bfloat16", *(("float64",) if device == "cpu" else ())):
        matrix = torch.zeros(size, size, dtype=DTYPES[name], device=at)
        flops[name] = 2.0 * size**3 / _seconds(lambda m=matrix: torch.mm(m, m), at)
    vector = torch.zeros(1 << (26 if device == "cuda" else 22), device=at)
    seconds = _seconds(lambda: torch.add(vector, 1.0), at)
    one = torch.zeros(1, device=at)
    overhead = _seconds(lambda: torch.add(one, 1.0), at)
    bandwidth = 2.0 * vector.numel() * vector.element_size() / max(seconds - overhead, 1e-9)
    return Device(base.name, base.memory, flops, bandwidth, overhead)
