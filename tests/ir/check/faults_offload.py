"""Faults of what lies in host memory: not fetched, fetched too late, read where it lies, not brought back."""

from __future__ import annotations

import random

import msgspec
from editing import Spot, inputs_of, renamed, spots, timeless, with_order, with_step
from faults import injects

from superscaler.ir.plan import Plan
from superscaler.ir.program import Call, Commit, Item, Offload, Program


def fetches(plan: Plan) -> list[Spot]:
    """The steps that bring state from host memory."""
    return [at for at in spots(plan, Offload) if at.step(plan).to == "device"]


def returns(plan: Plan) -> list[Spot]:
    """The commits to state in host memory."""
    return [at for at in spots(plan, Commit) if at.program(plan).blocks[at.block].lane == "transfer"]


def readers(program: Program, value: int) -> list[int]:
    """Places in the order of tasks that read a value."""
    blocks = {b for b, block in enumerate(program.blocks) if any(value in inputs_of(s) for s in block.steps)}
    return [i for i, item in enumerate(program.order) if item.block in blocks]


@injects("missing fetch", "missing fetch", "missing value", "read after free", "no buffer", "double free")
def missing_fetch(plan: Plan, rng: random.Random) -> Plan | None:
    found = fetches(plan)
    return with_step(plan, rng.choice(found)) if found else None


@injects("late fetch", "late fetch", "missing value", "read after free", "double free", "task before its input")
def late_fetch(plan: Plan, rng: random.Random) -> Plan | None:
    """A layer's state is fetched after the task that reads it."""
    found = fetches(plan)
    if not found:
        return None
    at = rng.choice(found)
    program = at.program(plan)
    first = readers(program, at.step(plan).dst)[0]
    fetched = next(i for i, item in enumerate(program.order) if item.block == at.block)

    def move(order: list[Item]) -> None:
        order.insert(first, order.pop(fetched))

    return with_order(timeless(plan), at.entry, at.role, move)


@injects("read in host memory", "missing fetch", "host value")
def read_in_host_memory(plan: Plan, rng: random.Random) -> Plan | None:
    """A task reads state where it lies, not what was fetched of it."""
    found = fetches(plan)
    if not found:
        return None
    at = rng.choice(found)
    step = at.step(plan)
    calls = [s for s in spots(plan, Call) if s[:2] == at[:2] and step.dst in s.step(plan).ins]
    return with_step(plan, calls[0], renamed(calls[0].step(plan), step.dst, step.src)) if calls else None


@injects("not brought back", "missing commit", "missing commit")
def not_brought_back(plan: Plan, rng: random.Random) -> Plan | None:
    found = returns(plan)
    return with_step(plan, rng.choice(found)) if found else None


@injects("brought back too early", "late fetch", "missing value", "read after free", "double free", "stale read")
def brought_back_early(plan: Plan, rng: random.Random) -> Plan | None:
    """The new content goes back before the task that makes it has run."""
    found = returns(plan)
    if not found:
        return None
    at = rng.choice(found)
    program = at.program(plan)
    value = at.step(plan).src
    makers = {b for b, block in enumerate(program.blocks) for s in block.steps if value in getattr(s, "outs", ())}
    made = next(i for i, item in enumerate(program.order) if item.block in makers)
    back = next(i for i, item in enumerate(program.order) if item.block == at.block)

    def move(order: list[Item]) -> None:
        order.insert(made, order.pop(back))

    return with_order(timeless(plan), at.entry, at.role, move)


@injects("another memory", "wrong memory", "host value")
def another_memory(plan: Plan, rng: random.Random) -> Plan | None:
    """State that the Programs fetch is said to lie on the device."""
    hosted = [i for i, state in enumerate(plan.state) if state.memory == "host"]
    if not hosted:
        return None
    which = rng.choice(hosted)
    state = list(plan.state)
    state[which] = msgspec.structs.replace(state[which], memory="device")
    return msgspec.structs.replace(plan, state=tuple(state))
