"""Faults of order and time: lost, repeated or misplaced tasks, reductions too early, planned times that cannot be."""

from __future__ import annotations

import random
from itertools import pairwise

from editing import inputs_of, replace, timeless, with_entry, with_order, with_program
from faults import injects

from superscaler.ir.entry import Entry
from superscaler.ir.plan import Plan
from superscaler.ir.program import Accumulate, Call, Collect, Commit, Item, Program, Recv

EARLY = ("reduction too early", "missing value", "read after free", "deadlock", "missing result",
         "missing communication", "double free", "task before its input", "no buffer")  # fmt: skip


def programs(plan: Plan) -> list[tuple[str, int, Program]]:
    return [(name, i, p) for name, entry in plan.entries.items() for i, p in enumerate(entry.programs)]


def tasks_with(program: Program, *kinds: type) -> list[int]:
    """Places in the order of tasks whose block has a step of these kinds."""
    blocks = {b for b, block in enumerate(program.blocks) if any(isinstance(s, kinds) for s in block.steps)}
    return [i for i, item in enumerate(program.order) if item.block in blocks]


@injects("micro-batch lost", "lost task", *EARLY, bug=13)
def task_lost(plan: Plan, rng: random.Random) -> Plan | None:
    """A task that contributes to a sum, or computes what others read, is not run for one micro-batch."""
    found = []
    for name, role, program in programs(plan):
        read = {v for block in program.blocks for step in block.steps for v in inputs_of(step)}
        for i, item in enumerate(program.order):
            steps = program.blocks[item.block].steps
            written = {v for s in steps for v in (s.outs if isinstance(s, Call) else (getattr(s, "into", -1),))}
            if any(isinstance(s, Accumulate | Collect) for s in steps) or (
                written & read & {b.value for b in program.buffers}
            ):
                found.append((name, role, i))
    if not found:
        return None
    name, role, gone = rng.choice(found)
    return with_order(timeless(plan), name, role, lambda order: order.pop(gone) and None)


@injects(
    "micro-batch twice",
    "repeated task",
    "counted twice",
    "written twice",
    "duplicated communication",
    "duplicated commit",
    "stale read",
    "read after free",
    "double free",
    bug=13,
)
def task_twice(plan: Plan, rng: random.Random) -> Plan | None:
    """A task that adds to a sum is run twice for one micro-batch."""
    found = [(n, r, i) for n, r, program in programs(plan) for i in tasks_with(program, Accumulate)]
    if not found:
        return None
    name, role, again = rng.choice(found)

    def insert(order: list[Item]) -> None:
        order.insert(again, replace(order[again], frees=-1))

    return with_order(timeless(plan), name, role, insert)


@injects("wrong micro-batch", "repeated task", *EARLY, "counted twice", "written twice", "duplicated communication")
def wrong_microbatch(plan: Plan, rng: random.Random) -> Plan | None:
    """A task is run for another micro-batch than its own, which is so run twice."""
    found = [
        (name, role, i)
        for name, role, program in programs(plan)
        for i, item in enumerate(program.order)
        if program.blocks[item.block].over and plan.entries[name].microbatches > 1 and item.frees < 0
    ]
    if not found:
        return None
    name, role, i = rng.choice(found)
    count = plan.entries[name].microbatches

    def change(order: list[Item]) -> None:
        order[i] = replace(order[i], microbatch=(order[i].microbatch + 1) % count)

    return with_order(timeless(plan), name, role, change)


@injects("reduction too early", "too early reduction", *EARLY, bug=14)
def reduction_too_early(plan: Plan, rng: random.Random) -> Plan | None:
    """What completes or reads a sum over micro-batches runs before the last term is in."""
    found = []
    for name, role, program in programs(plan):
        sums = {
            step.into for block in program.blocks if block.over for step in block.steps if isinstance(step, Accumulate)
        }
        for i, item in enumerate(program.order):
            reads = {v for step in program.blocks[item.block].steps for v in inputs_of(step)}
            terms = [
                k
                for k, other in enumerate(program.order[:i])
                for step in program.blocks[other.block].steps
                if isinstance(step, Accumulate) and step.into in sums & reads
            ]
            if terms:
                found.append((name, role, i, max(terms)))
    if not found:
        return None
    name, role, i, last = rng.choice(found)
    return with_order(timeless(plan), name, role, lambda order: order.insert(last, order.pop(i)))


@injects("task before what it reads", "wrong order", *EARLY, "stale read", "written twice")
def task_too_early(plan: Plan, rng: random.Random) -> Plan | None:
    """A task is run before the one that writes what it reads."""
    found = []
    for name, role, program in programs(plan):
        shared = {b.value for b in program.buffers}
        for i, item in enumerate(program.order):
            reads = {v for s in program.blocks[item.block].steps for v in inputs_of(s)} & shared
            for k, other in enumerate(program.order[:i]):
                steps = program.blocks[other.block].steps
                written = {v for s in steps for v in (s.outs if isinstance(s, Call) else (getattr(s, "dst", -1),))}
                if written & reads and item.microbatch == other.microbatch and item.block != other.block:
                    found.append((name, role, i, k))
    if not found:
        return None
    name, role, i, k = rng.choice(found)
    return with_order(timeless(plan), name, role, lambda order: order.insert(k, order.pop(i)))


@injects(
    "stale read", "stale read", "stale read", "missing value", "read after free", "deadlock", "reduction too early"
)
def stale_read(plan: Plan, rng: random.Random) -> Plan | None:
    """A commit stands before the last reader of the old content: a forward runs on new weights."""
    found = []
    for name, role, program in programs(plan):
        for i in tasks_with(program, Commit):
            mine = program.blocks[program.order[i].block]
            for b, s, state in [
                (program.order[i].block, k, s.state) for k, s in enumerate(mine.steps) if isinstance(s, Commit)
            ]:
                readers = [
                    k
                    for k, item in enumerate(program.order[:i])
                    if any(state in inputs_of(step) for step in program.blocks[item.block].steps)
                ]
                found += [(name, role, b, s, state, readers[-1])] if readers else []
    if not found:
        return None
    name, role, _, _, state, reader = rng.choice(found)
    program = plan.entries[name].programs[role]
    late = next(i for i in tasks_with(program, Commit) if _commits(program, i, state))
    return with_order(timeless(plan), name, role, lambda order: order.append(order.pop(reader)) if late else None)


def _commits(program: Program, place: int, state: int) -> bool:
    steps = program.blocks[program.order[place].block].steps
    return any(isinstance(step, Commit) and step.state == state for step in steps)


@injects(
    "wrong micro-batch received",
    "wrong time index",
    *EARLY,
    "wrong time index",
    "missing communication",
    "duplicated communication",
)
def received_for_another(plan: Plan, rng: random.Random) -> Plan | None:
    """Two receives of one transfer change their micro-batches: each is taken for the other's."""
    found = []
    for name, role, program in programs(plan):
        places: dict[int, list[int]] = {}
        for i in tasks_with(program, Recv):
            places.setdefault(program.order[i].block, []).append(i)
        found += [(name, role, p) for p in places.values() if len(p) > 1]
    if not found:
        return None
    name, role, places_of = rng.choice(found)
    one, other = rng.sample(places_of, 2)

    def swap(order: list[Item]) -> None:
        a, b = order[one].microbatch, order[other].microbatch
        order[one], order[other] = replace(order[one], microbatch=b), replace(order[other], microbatch=a)

    return with_order(timeless(plan), name, role, swap)


@injects("at a time index that is not there", "wrong time index", "wrong time index")
def no_such_microbatch(plan: Plan, rng: random.Random) -> Plan | None:
    name, role, program = rng.choice(programs(plan))
    i = rng.randrange(len(program.order))
    count = plan.entries[name].microbatches if program.blocks[program.order[i].block].over else 1

    def change(order: list[Item]) -> None:
        order[i] = replace(order[i], microbatch=count)

    return with_order(plan, name, role, change)


@injects(
    "value of all micro-batches read as one",
    "wrong time index",
    "wrong time index",
    "wrong layout",
    "partial read as complete",
    "complete read as partial",
    "wrong result",
    "malformed plan",
    "written twice",
    "counted twice",
    "mismatched communication",
)
def over_dropped(plan: Plan, rng: random.Random) -> Plan | None:
    """A block that should run per micro-batch runs once, for the first one."""
    found = [
        (name, role, number)
        for name, role, program in programs(plan)
        for number, block in enumerate(program.blocks)
        if block.over and plan.entries[name].microbatches > 1 and any(item.block == number for item in program.order)
    ]
    if not found:
        return None
    name, role, number = rng.choice(found)
    blocks = list(plan.entries[name].programs[role].blocks)
    blocks[number] = replace(blocks[number], over=())
    plan = with_program(timeless(plan), name, role, blocks=tuple(blocks))
    return with_order(plan, name, role, lambda order: _once(order, number))


def _once(order: list[Item], block: int) -> None:
    order[:] = [item for item in order if item.block != block or item.microbatch == 0]


# --- planned times ----------------------------------------------------------------------------------------------------


def compute_tasks(program: Program) -> list[int]:
    tasks = enumerate(program.order)
    return [i for i, t in tasks if program.blocks[t.block].lane == "compute" and t.end > t.start]


@injects("overlapping tasks", "overlapping tasks", "overlapping tasks", "task before its input")
def overlapping(plan: Plan, rng: random.Random) -> Plan | None:
    """A task is planned to start while the one before it on its lane still runs."""
    found = []
    for name, role, program in programs(plan):
        places = compute_tasks(program)
        found += [(name, role, a, b) for a, b in pairwise(places)]
    if not found:
        return None
    name, role, a, b = rng.choice(found)

    def change(order: list[Item]) -> None:
        order[b] = replace(order[b], start=order[a].end - 1)

    return with_order(plan, name, role, change)


@injects("planned before its input", "task before its input", "task before its input", "overlapping tasks")
def before_its_input(plan: Plan, rng: random.Random) -> Plan | None:
    """A transfer is planned to be over before it is sent."""
    found = []
    for name, role, program in programs(plan):
        for i in tasks_with(program, Recv):
            if program.order[i].end > 0:
                found.append((name, role, i))
    if not found:
        return None
    name, role, i = rng.choice(found)

    def change(order: list[Item]) -> None:
        order[i] = replace(order[i], start=0, end=0)

    return with_order(plan, name, role, change)


@injects("bound above the makespan", "wrong certificate", "wrong certificate")
def wrong_bound(plan: Plan, rng: random.Random) -> Plan | None:
    name = rng.choice(sorted(plan.entries))
    entry: Entry = plan.entries[name]
    stated = entry.certificate
    return with_entry(plan, name, certificate=replace(stated, bound=stated.makespan + 1))


@injects("makespan understated", "wrong certificate", "wrong certificate")
def wrong_makespan(plan: Plan, rng: random.Random) -> Plan | None:
    name = rng.choice(sorted(plan.entries))
    stated = plan.entries[name].certificate
    if stated.makespan < 4:
        return None
    half = stated.makespan // 2
    bound = min(stated.bound, half)
    return with_entry(plan, name, certificate=replace(stated, makespan=half, bound=bound, gap=(half - bound) / half))
