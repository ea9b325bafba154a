"""Storage: where each value of a Program lives on a worker, and which steps read and write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from superscaler.ir.program import (
    Accumulate,
    At,
    Block,
    Call,
    Collect,
    Collective,
    Commit,
    Mask,
    Offload,
    Program,
    Recv,
    Send,
    Slice,
    Step,
)  # fmt: skip

Place = Literal["state", "input", "arena", "held", "local"]


def reads(step: Step) -> tuple[int, ...]:
    """The values whose content a step needs."""
    match step:
        case Call():
            return step.ins
        case Recv():
            return () if step.local < 0 else (step.local,)
        case Slice() | Mask() | Accumulate() | Collect() | Collective() | Send() | Commit() | Offload():
            return (step.src,)


def writes(step: Step) -> tuple[int, ...]:
    """The values that a step gives content."""
    match step:
        case Call():
            return step.outs
        case Accumulate() | Collect():
            return (step.into,)
        case Commit():
            return (step.state,)
        case Send():
            return ()
        case Slice() | Mask() | Collective() | Recv() | Offload():
            return (step.dst,)


def at_of(step: Step) -> At:
    """The time indices that a step fixes itself."""
    return () if isinstance(step, Commit | Offload) else step.at


def touched(block: Block) -> Iterator[int]:
    """All values of a block."""
    for step in block.steps:
        yield from reads(step)
        yield from writes(step)


def users(program: Program) -> dict[int, set[int]]:
    """The blocks that touch each value, by number."""
    found: dict[int, set[int]] = {}
    for number, block in enumerate(program.blocks):
        for value in touched(block):
            found.setdefault(value, set()).add(number)
    return found


def places(program: Program, users: Mapping[int, set[int]]) -> list[Place]:
    """Where each value lives. ``local``: it dies with the instance of the one block that uses it."""
    found: list[Place] = []
    arena = {buffer.value for buffer in program.buffers}
    kept = {*program.outputs.values(), *program.gradients.values()}
    for value, description in enumerate(program.values):
        blocks = users.get(value, set())
        if value in program.state.values():
            found.append("state")
        elif value in program.inputs.values():
            found.append("input")
        elif value in arena:
            found.append("arena")
        elif value in kept or len(blocks) != 1:
            found.append("held")
        else:
            inside = set(program.blocks[next(iter(blocks))].over) <= set(description.over)
            found.append("local" if inside else "held")
    return found
