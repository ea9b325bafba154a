"""Faults of memory and of places: early and double frees, overlapping buffers, wrong ranks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from editing import inputs_of, put, replace, with_order, with_program
from faults import injects
from faults_order import programs

from superscaler.ir.plan import Plan
from superscaler.ir.program import Buffer, Item, Program


def reads(program: Program, item: Item) -> set[int]:
    return {v for step in program.blocks[item.block].steps for v in inputs_of(step)}


def releases(plan: Plan) -> Iterator[tuple[str, int, int, int]]:
    """(entry, role, place in the order, value) of every release of a value's memory."""
    for name, role, program in programs(plan):
        for i, item in enumerate(program.order):
            for value in program.frees[item.frees] if item.frees >= 0 else ():
                yield name, role, i, value


def release_at(plan: Plan, name: str, role: int, place: int, value: int) -> Plan:
    """With one more value released after a task."""
    program = plan.entries[name].programs[role]
    old = program.order[place].frees
    grown = (*(program.frees[old] if old >= 0 else ()), value)
    plan = with_program(plan, name, role, frees=(*program.frees, grown))

    def change(order: list[Item]) -> None:
        order[place] = replace(order[place], frees=len(program.frees))

    return with_order(plan, name, role, change)


def not_released(plan: Plan, name: str, role: int, place: int, value: int) -> Plan:
    program = plan.entries[name].programs[role]
    kept = tuple(v for v in program.frees[program.order[place].frees] if v != value)
    plan = with_program(plan, name, role, frees=(*program.frees, kept))

    def change(order: list[Item]) -> None:
        order[place] = replace(order[place], frees=len(program.frees))

    return with_order(plan, name, role, change)


@injects("early free", "early free", "read after free", "double free")
def early_free(plan: Plan, rng: random.Random) -> Plan | None:
    """Memory is released after a task, though a later one still reads it."""
    found = []
    for name, role, last, value in releases(plan):
        program = plan.entries[name].programs[role]
        if value not in reads(program, program.order[last]):
            continue
        per = bool(program.values[value].over)
        for i in range(last - 1, -1, -1):
            item = program.order[i]
            same = not per or item.microbatch == program.order[last].microbatch
            written = {v for s in program.blocks[item.block].steps for v in _outs(s)}
            if same and value in written:
                found.append((name, role, last, i, value))
    if not found:
        return None
    name, role, last, i, value = rng.choice(found)
    return release_at(not_released(plan, name, role, last, value), name, role, i, value)


def _outs(step: object) -> tuple[int, ...]:
    return getattr(step, "outs", None) or (getattr(step, "dst", getattr(step, "into", -1)),)


@injects("double free", "early free", "double free", "freed result")
def double_free(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for name, role, first, value in releases(plan):
        program = plan.entries[name].programs[role]
        per = bool(program.values[value].over)
        for i in range(first + 1, len(program.order)):
            if not per or program.order[i].microbatch == program.order[first].microbatch:
                found.append((name, role, i, value))
                break
    return release_at(plan, *rng.choice(found)) if found else None


@injects("result released", "early free", "freed result", "double free", "read after free")
def freed_result(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for name, role, program in programs(plan):
        kept = {*program.outputs.values(), *program.gradients.values()} & {b.value for b in program.buffers}
        found += [(name, role, len(program.order) - 1, value) for value in kept]
    return release_at(plan, *rng.choice(sorted(found))) if found else None


# --- the arena --------------------------------------------------------------------------------------------------------


def with_buffer(plan: Plan, name: str, role: int, index: int, *instead: Buffer) -> Plan:
    buffers = plan.entries[name].programs[role].buffers
    return with_program(plan, name, role, buffers=(*buffers[:index], *instead, *buffers[index + 1 :]))


def together(program: Program) -> Iterator[tuple[int, int, int, int]]:
    """(buffer, instance, buffer, instance) of values that one task reads: both live then."""
    index = {buffer.value: i for i, buffer in enumerate(program.buffers)}
    for item in program.order:
        read = sorted(v for v in reads(program, item) if v in index and program.buffers[index[v]].size)
        for a, b in pairwise(read):
            ja, jb = (item.microbatch if program.values[v].over else 0 for v in (a, b))
            yield index[a], ja, index[b], jb


@injects("overlapping buffers", "overlapping buffers", "overlapping buffers", "outside the arena")
def overlapping_buffers(plan: Plan, rng: random.Random) -> Plan | None:
    """Two buffers that live at one task share bytes."""
    found = [(n, r, pair) for n, r, p in programs(plan) for pair in together(p)]
    if not found:
        return None
    name, role, (a, ja, b, jb) = rng.choice(found)
    buffers = plan.entries[name].programs[role].buffers
    offset = buffers[b].offsets[jb] + (64 if buffers[b].size > 64 and rng.random() < 0.5 else 0)
    return with_buffer(plan, name, role, a, replace(buffers[a], offsets=put(buffers[a].offsets, ja, offset)))


@injects("buffer too small", "overlapping buffers", "buffer too small")
def too_small(plan: Plan, rng: random.Random) -> Plan | None:
    found = [(n, r, i) for n, r, p in programs(plan) for i, buffer in enumerate(p.buffers) if buffer.size]
    if not found:
        return None
    name, role, i = rng.choice(found)
    buffer = plan.entries[name].programs[role].buffers[i]
    return with_buffer(plan, name, role, i, replace(buffer, size=buffer.size // 2))


@injects("outside the arena", "overlapping buffers", "outside the arena")
def outside(plan: Plan, rng: random.Random) -> Plan | None:
    found = [(n, r) for n, r, p in programs(plan) if any(buffer.size for buffer in p.buffers)]
    if not found:
        return None
    name, role = rng.choice(found)
    program = plan.entries[name].programs[role]
    used = max(max(b.offsets) + b.size for b in program.buffers)
    return with_program(plan, name, role, arena=used - 1)


@injects("no buffer", "overlapping buffers", "no buffer", "missing result", "double free")
def no_buffer(plan: Plan, rng: random.Random) -> Plan | None:
    """A value that outlives its task has no place in the arena."""
    found = []
    for name, role, program in programs(plan):
        for i, buffer in enumerate(program.buffers):
            readers = {k for k, block in enumerate(program.blocks) for s in block.steps if buffer.value in inputs_of(s)}
            writers = {k for k, block in enumerate(program.blocks) for s in block.steps if buffer.value in _outs(s)}
            if readers - writers:
                found.append((name, role, i))
    return with_buffer(plan, *rng.choice(found)) if found else None


@injects("device too small", "out of memory", "out of memory")
def device_too_small(plan: Plan, rng: random.Random) -> Plan | None:
    least = min(p.peak for _, _, p in programs(plan))
    kinds = tuple(replace(kind, memory=max(1, least - 1)) for kind in plan.cluster.kinds)
    return replace(plan, cluster=replace(plan.cluster, kinds=kinds))


@injects("peak understated", "out of memory", "wrong peak")
def peak_understated(plan: Plan, rng: random.Random) -> Plan | None:
    found = [(n, r) for n, r, p in programs(plan) if p.arena > 1]
    return with_program(plan, *rng.choice(found), peak=1) if found else None


# --- ranks ------------------------------------------------------------------------------------------------------------


@injects(
    "workers of two stages exchanged",
    "wrong stage",
    "wrong rank",
    "wrong group",
    "wrong piece",
    "missing communication",
    bug=7,
)
def wrong_stage(plan: Plan, rng: random.Random) -> Plan | None:
    """Two workers run each other's Program."""
    found = [name for name, entry in plan.entries.items() if len(entry.programs) > 1]
    if not found:
        return None
    name = rng.choice(found)
    one, other = rng.sample(range(len(plan.entries[name].programs)), 2)
    first, second = (plan.entries[name].programs[r].workers for r in (one, other))
    i, j = rng.randrange(len(first)), rng.randrange(len(second))
    plan = with_program(plan, name, one, workers=put(first, i, second[j]))
    return with_program(plan, name, other, workers=put(second, j, first[i]))


@injects(
    "worker left out",
    "wrong stage",
    "missing communication",
    "missing commit",
    "missing result",
    "wrong group",
    "mixed partials",
)
def worker_left_out(plan: Plan, rng: random.Random) -> Plan | None:
    """A worker of several runs nothing."""
    name = "train" if "train" in plan.entries else rng.choice(sorted(plan.entries))
    found = [r for r, program in enumerate(plan.entries[name].programs) if len(program.workers) > 1]
    if not found:
        return None
    role = rng.choice(found)
    workers = plan.entries[name].programs[role].workers
    gone = rng.choice(workers)
    return with_program(plan, name, role, workers=tuple(w for w in workers if w != gone))


@injects("worker that is not there", "wrong stage", "wrong rank")
def strange_worker(plan: Plan, rng: random.Random) -> Plan | None:
    name, role, program = rng.choice(programs(plan))
    return with_program(plan, name, role, workers=put(program.workers, 0, plan.workers))
