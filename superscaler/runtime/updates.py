"""Updates in place: an op whose results become the state that it read overwrites that state.

Where only some do (a shard of a parameter whose whole is gathered later, beside its moments), the others get a copy of
their operand, and the op overwrites the copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from superscaler.ir.program import Block, Call, Commit, Definition, Mask, Program, Row, Slice, Step
from superscaler.ir.rules.build import input_of
from superscaler.runtime.body import VIEWS
from superscaler.runtime.ops import INPLACE
from superscaler.runtime.storage import reads


@dataclass(frozen=True)
class InPlace:
    """``rows``: the rows of a call that run in place, as (first output's local number, outputs whose operand is copied
    before). ``state``: their values -> the state value each has become."""

    rows: tuple[tuple[int, tuple[int, ...]], ...]
    state: Mapping[int, int]


def in_place(
    program: Program, users: Mapping[int, set[int]], block: Block, number: int, definitions: Sequence[Definition]
) -> InPlace:
    """What of the call that is step ``number`` of a block can run in place. ``users``: the blocks of each value."""
    call = block.steps[number]
    assert isinstance(call, Call)
    definition = definitions[call.definition]
    commits = {s.src: (i, s.state) for i, s in enumerate(block.steps) if isinstance(s, Commit) and i > number}
    rows: list[tuple[int, tuple[int, ...]]] = []
    state: dict[int, int] = {}
    for position, row in enumerate(definition.rows):
        found = _row(row, definition.rows[position + 1 :], definition, call, commits)
        kept = {
            k: value
            for k, value in found.items()
            if not _used_elsewhere(program, users, value)
            and not _read_between(block, number, commits[value][0], commits[value][1])
            and not _seen_through_views(block, number, definitions, commits[value][1])
        }
        if kept:
            rows.append((row.outs[0], tuple(k for k in range(len(row.outs)) if k not in kept)))
            state.update({value: commits[value][1] for value in kept.values()})
    return InPlace(tuple(rows), state)


def _row(
    row: Row, later: tuple[Row, ...], definition: Definition, call: Call, commits: Mapping[int, tuple[int, int]]
) -> dict[int, int]:
    """Output -> its value, for those that are committed over the operand that they replace."""
    overwrites = INPLACE[row.target][1] if row.target in INPLACE else ()
    if any(place >= len(row.args) for place in overwrites[: len(row.outs)]):
        return {}
    found: dict[int, int] = {}
    for k, local in enumerate(row.outs):
        if k >= len(overwrites) or local not in definition.outs:
            continue
        value = call.outs[definition.outs.index(local)]
        number = input_of(row.args[overwrites[k]])
        operand = definition.inputs if number is None else row.ins[number]
        if value not in commits or operand >= definition.inputs or call.ins[operand] != commits[value][1]:
            continue
        seen = _views(definition, {operand})
        if any(seen & set(other.ins) for other in later) or row.ins.count(operand) > 1 or seen & set(definition.outs):
            continue
        if call.ins.count(call.ins[operand]) > 1 or (seen - {operand}) & set(row.ins):
            continue
        found[k] = value
    return found


def _used_elsewhere(program: Program, users: Mapping[int, set[int]], value: int) -> bool:
    named = value in program.outputs.values() or value in program.gradients.values()
    return named or len(users[value]) > 1


def _read_between(block: Block, start: int, stop: int, value: int) -> bool:
    return any(value in reads(step) for step in block.steps[start + 1 : stop])


def _views(definition: Definition, seen: set[int]) -> set[int]:
    """The locals of a definition that may share the storage of ``seen``, those included."""
    found = set(seen)
    for row in definition.rows:
        if row.target in VIEWS and found & set(row.ins):
            found |= set(row.outs)
    return found


def _seen_through_views(block: Block, number: int, definitions: Sequence[Definition], state: int) -> bool:
    """Whether something that is read from step ``number`` on may be a view of a state, made before."""
    seen = {state}
    for step in block.steps[:number]:
        seen |= _views_of(step, definitions, seen)
    return any((seen - {state}) & set(reads(step)) for step in block.steps[number:])


def _views_of(step: Step, definitions: Sequence[Definition], seen: set[int]) -> set[int]:
    match step:
        case Call():
            definition = definitions[step.definition]
            inside = _views(definition, {i for i, value in enumerate(step.ins) if value in seen})
            return {value for value, local in zip(step.outs, definition.outs, strict=True) if local in inside}
        case Slice() | Mask() if step.src in seen:
            return {step.dst}
        case _:
            return set()
