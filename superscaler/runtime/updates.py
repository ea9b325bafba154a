"""Updates in place: an op whose results all become the state that it read overwrites that state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from superscaler.ir.program import Block, Call, Commit, Definition, Program, Row
from superscaler.runtime.ops import INPLACE
from superscaler.runtime.storage import reads, touched


@dataclass(frozen=True)
class InPlace:
    """``rows``: first outputs (local numbers) of the rows of a call that run in place. ``state``: their values -> the
    state value each has become."""

    rows: tuple[int, ...]
    state: Mapping[int, int]


def in_place(program: Program, block: Block, number: int, definition: Definition) -> InPlace:
    """What of the call that is step ``number`` of a block can run in place."""
    call = block.steps[number]
    assert isinstance(call, Call)
    commits = {s.src: (i, s.state) for i, s in enumerate(block.steps) if isinstance(s, Commit) and i > number}
    rows: list[int] = []
    state: dict[int, int] = {}
    for position, row in enumerate(definition.rows):
        found = _row(row, definition.rows[position + 1 :], definition, call, commits)
        if found is None or any(_used_elsewhere(program, block, v) for v in found):
            continue
        if any(_read_between(block, number, commits[v][0], s) for v, s in found.items()):
            continue
        rows.append(row.outs[0])
        state.update(found)
    return InPlace(tuple(rows), state)


def _row(
    row: Row, later: tuple[Row, ...], definition: Definition, call: Call, commits: Mapping[int, tuple[int, int]]
) -> dict[int, int] | None:
    """Value -> state value, if every output of the row is committed over the operand that it replaces."""
    if row.target not in INPLACE:
        return None
    overwrites = INPLACE[row.target][1]
    found: dict[int, int] = {}
    for k, local in enumerate(row.outs):
        if local not in definition.outs:
            return None
        value = call.outs[definition.outs.index(local)]
        operand = row.ins[overwrites[k]]
        if value not in commits or operand >= definition.inputs or call.ins[operand] != commits[value][1]:
            return None
        if any(operand in other.ins for other in later) or row.ins.count(operand) > 1 or operand in definition.outs:
            return None
        found[value] = commits[value][1]
    return found


def _used_elsewhere(program: Program, block: Block, value: int) -> bool:
    named = value in program.outputs.values() or value in program.gradients.values()
    return named or any(value in touched(other) for other in program.blocks if other is not block)


def _read_between(block: Block, start: int, stop: int, value: int) -> bool:
    return any(value in reads(step) for step in block.steps[start + 1 : stop])
