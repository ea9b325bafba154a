"""A worker: its place on the meshes, what it holds, what it does in a step, and with whom it exchanges what."""

from __future__ import annotations

from collections import Counter
from math import prod

from superscaler.ir.check.fault import workers_text
from superscaler.ir.entry import Contents, Entry
from superscaler.ir.explain.explanation import Explanation, explanation, shortened
from superscaler.ir.graph import ITEMSIZE
from superscaler.ir.layout import Layout
from superscaler.ir.program import Collective, Program, Send
from superscaler.ir.region import Region
from superscaler.ir.summary import bytes_text

MOST = 12


def explain_worker(plan: Contents, worker: int) -> Explanation:
    """The explanation of a worker."""
    found = {name: (e, p) for name, e in plan.entries.items() for p in e.programs if worker in p.workers}
    does: list[str] = []
    exchanges: list[str] = []
    for name, (entry, program) in found.items():
        prefix = f"{name}: " if len(plan.entries) > 1 else ""
        does += [prefix + line for line in _tasks(entry, program)]
        exchanges += [prefix + line for line in _exchanges(plan, entry, program, worker)]
    device = plan.cluster.device(worker)
    return explanation(
        f"worker {worker} of {plan.workers}: a {device.name} with {bytes_text(device.memory)}",
        stands=_place(plan, worker, [p for _, p in found.values()]),
        holds=_state(plan, worker),
        does=does,
        exchanges=shortened(exchanges, MOST, "exchanges"),
    )


def _place(plan: Contents, worker: int, programs: list[Program]) -> list[str]:
    lines = [
        f"on mesh {mesh.name}: " + (", ".join(f"{axis} {i}" for axis, i in mesh.coords(worker).items()) or "alone")
        for mesh in plan.space.meshes
        if worker in mesh.devices
    ]
    alike = sorted({w for program in programs for w in program.workers} - {worker})
    return [*lines, f"runs the same program as {workers_text(tuple(alike))}"] if alike else lines


def _state(plan: Contents, worker: int) -> list[str]:
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for tensor in plan.state:
        mesh = plan.space.mesh(tensor.layout.mesh)
        if worker in mesh.devices:
            region = plan.space.region(tensor.shape, tensor.layout, mesh.coords(worker))
            kind = f"{tensor.kind} state" + (" in host memory" if tensor.memory == "host" else "")
            sizes[kind] += region.volume * ITEMSIZE[tensor.dtype]
            counts[kind] += 1
    return [f"{bytes_text(size)} of {kind}, in {counts[kind]} tensors" for kind, size in sizes.most_common()]


def _tasks(entry: Entry, program: Program) -> list[str]:
    count: Counter[str] = Counter()
    time: Counter[str] = Counter()
    for item in program.order:
        block = program.blocks[item.block]
        count[block.kind] += 1
        time[block.kind] += item.end - item.start
    span = entry.certificate.makespan
    lines = [f"{count[kind]} {kind} tasks, {t / 1e3:.4g} ms of {span / 1e3:.4g} planned" for kind, t in time.items()]
    return [*lines, f"arena {bytes_text(program.arena)}, peak with state and workspace {bytes_text(program.peak)}"]


def _exchanges(plan: Contents, entry: Entry, program: Program, worker: int) -> list[str]:
    """Bytes per step, by kind and group or peer."""
    size: Counter[str] = Counter()
    times: Counter[str] = Counter()
    runs = Counter(item.block for item in program.order)
    for number, block in enumerate(program.blocks):
        for step in block.steps:
            if isinstance(step, Collective):
                group = next(g for g in entry.groupings[step.grouping].groups if worker in g)
                key, bytes_ = f"{step.kind} with {workers_text(group)}", _held(plan, entry, program, worker, step.src)
            elif isinstance(step, Send):
                pieces = [p for p in entry.routes[step.route].pieces if p.source == worker != p.destination]
                if not pieces:
                    continue
                key = f"send to {workers_text(tuple(sorted({p.destination for p in pieces})))}"
                bytes_ = _held(plan, entry, program, worker, step.src)
            else:
                continue
            size[key] += runs[number] * bytes_
            times[key] += runs[number]
    return [f"{key}: {times[key]} times, {bytes_text(total)} a step" for key, total in size.most_common()]


def _held(plan: Contents, entry: Entry, program: Program, worker: int, value: int) -> int:
    """Bytes that the worker holds of a value, at its first micro-batch."""
    described = program.values[value]
    tensor, layout = entry.graph.tensor[described.tensor], described.layout
    coords = {**dict.fromkeys((a for a, _ in layout.states), 0), **plan.space.mesh(layout.mesh).coords(worker)}
    region: Region = plan.space.region(tensor.shape, Layout(layout.mesh, layout.states), coords)
    return prod(region.shape) * ITEMSIZE[tensor.dtype]
