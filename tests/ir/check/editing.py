"""Changing one thing in a plan: plans are immutable, so each change gives a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec

from superscaler.ir.plan import Plan
from superscaler.ir.program import Block, Call, Item, Program, Step

replace = msgspec.structs.replace
Kind = TypeVar("Kind", bound=Step)


class Spot(NamedTuple):
    """A step of a plan that runs."""

    entry: str
    role: int
    block: int
    index: int

    def program(self, plan: Plan) -> Program:
        return plan.entries[self.entry].programs[self.role]

    def step(self, plan: Plan) -> Any:
        return self.program(plan).blocks[self.block].steps[self.index]


def spots(plan: Plan, *kinds: type[Step]) -> Iterator[Spot]:
    """All steps of these kinds in blocks that run."""
    for name, entry in plan.entries.items():
        for role, program in enumerate(entry.programs):
            for number in sorted({item.block for item in program.order}):
                for index, step in enumerate(program.blocks[number].steps):
                    if isinstance(step, kinds):
                        yield Spot(name, role, number, index)


def with_entry(plan: Plan, name: str, **changes: Any) -> Plan:
    return replace(plan, entries={**plan.entries, name: replace(plan.entries[name], **changes)})


def with_program(plan: Plan, name: str, role: int, **changes: Any) -> Plan:
    programs = list(plan.entries[name].programs)
    programs[role] = replace(programs[role], **changes)
    return with_entry(plan, name, programs=tuple(programs))


def with_block(plan: Plan, name: str, role: int, block: int, **changes: Any) -> Plan:
    blocks: list[Block] = list(plan.entries[name].programs[role].blocks)
    blocks[block] = replace(blocks[block], **changes)
    return with_program(plan, name, role, blocks=tuple(blocks))


def with_steps(plan: Plan, at: Spot, change: Callable[[list[Step]], None]) -> Plan:
    steps = list(at.program(plan).blocks[at.block].steps)
    change(steps)
    return with_block(plan, at.entry, at.role, at.block, steps=tuple(steps))


def with_step(plan: Plan, at: Spot, *instead: Step) -> Plan:
    """The step replaced by others; by none, it is dropped."""

    def put(steps: list[Step]) -> None:
        steps[at.index : at.index + 1] = instead

    return with_steps(plan, at, put)


def with_value(plan: Plan, name: str, role: int, value: int, **changes: Any) -> Plan:
    values = list(plan.entries[name].programs[role].values)
    values[value] = replace(values[value], **changes)
    return with_program(plan, name, role, values=tuple(values))


def with_order(plan: Plan, name: str, role: int, change: Callable[[list[Item]], None]) -> Plan:
    order = list(plan.entries[name].programs[role].order)
    change(order)
    return with_program(plan, name, role, order=tuple(order))


def inputs_of(step: Step) -> tuple[int, ...]:
    """The values that a step reads, but for what a Recv takes from itself."""
    return step.ins if isinstance(step, Call) else (getattr(step, "src", -1),)


def renamed(step: Step, old: int, new: int) -> Step:
    """The step reading ``new`` where it read ``old``."""
    if isinstance(step, Call):
        return replace(step, ins=tuple(new if v == old else v for v in step.ins))
    return replace(step, src=new) if getattr(step, "src", -1) == old else step


def put(table: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    """The tuple with one element replaced."""
    return (*table[:index], item, *table[index + 1 :])


def timeless(plan: Plan) -> Plan:
    """The plan with all tasks planned at time 0: so that a change of their order is no fault of the planned times."""
    for name, entry in plan.entries.items():
        for role, program in enumerate(entry.programs):
            order = tuple(replace(item, start=0, end=0) for item in program.order)
            plan = with_program(plan, name, role, order=order)
        stated = replace(entry.certificate, makespan=0, bound=0, gap=0.0)
        plan = with_entry(plan, name, certificate=stated)
    return plan
