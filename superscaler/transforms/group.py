"""Grouping: consecutive ops of a block become one call of a definition; equal sequences share one definition."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from superscaler.ir.graph import Graph
from superscaler.ir.program import At, Call, Definition, Row, Slice, Step, Value
from superscaler.ir.rules.rule import Splits
from superscaler.transforms.blocks import Body, Compute
from superscaler.transforms.usage import at_of, reads

Instance = tuple[int, At]  # a value, at the turn that a step is in if the value has one for each


class Definitions:
    """The definitions of an entry, each once. ``values``: what the bodies' numbers stand for."""

    def __init__(self, graph: Graph, values: Sequence[Value]) -> None:
        self.graph = graph
        self.values = values
        self.all: list[Definition] = []
        self._index: dict[bytes, int] = {}

    def _intern(self, definition: Definition) -> int:
        key = msgspec.json.encode(definition)
        found = self._index.get(key)
        if found is None:
            found = self._index[key] = len(self.all)
            self.all.append(definition)
        return found

    def steps_of(self, body: Body, outside: set[int]) -> tuple[Step, ...]:
        """The body's steps with runs of ops as calls. ``outside``: values read by other blocks."""
        steps: list[Step] = []
        run: list[Compute] = []
        listed = gathered(body.steps)
        uses = self._last_uses(listed)
        for position, step in enumerate(listed):
            if run and not (isinstance(step, Compute) and run[-1].at == step.at):
                steps.append(self._call(run, self._needed(run, outside, uses, position)))
                run = []
            if isinstance(step, Compute):
                run.append(step)
            else:
                steps.append(step)
        if run:
            steps.append(self._call(run, outside))
        return tuple(steps)

    def _last_uses(self, steps: Sequence[Step | Compute]) -> dict[Instance, int]:
        """The position of the last step that reads each instance."""
        last: dict[Instance, int] = {}
        for position, step in enumerate(steps):
            ins, at = (step.ins, step.at) if isinstance(step, Compute) else (reads(step), at_of(step))
            last.update((instance(self.values, v, at), position) for v in ins)
        return last

    def _needed(self, run: list[Compute], outside: set[int], uses: dict[Instance, int], position: int) -> set[int]:
        """The results of a run that other blocks read, or this one at or after ``position``."""
        made = {out for step in run for out in step.outs}
        return {v for v in made if v in outside or uses.get(instance(self.values, v, run[0].at), -1) >= position}

    def _call(self, run: list[Compute], needed: set[int]) -> Call:
        base = min(step.op for step in run)
        made = {out for step in run for out in step.outs}
        ins = tuple(dict.fromkeys(v for step in run for v in step.ins if v not in made))
        local = {v: i for i, v in enumerate(ins)}
        for step in run:
            for out in step.outs:
                local[out] = len(local)
        outs = tuple(v for step in run for v in step.outs if v in needed)
        rows = tuple(self._row(step, base, local) for step in run)
        definition = self._intern(Definition(len(ins), rows, tuple(local[v] for v in outs)))
        return Call(definition, base, ins, outs, run[0].mesh, run[0].at)

    def _row(self, step: Compute, base: int, local: dict[int, int]) -> Row:
        op = self.graph.ops[step.op]
        ins = tuple(local[v] for v in step.ins)
        outs = tuple(local[v] for v in step.outs)
        splits: Splits = step.splits
        return Row(step.op - base, op.target, op.args, ins, outs, splits)


def instance(values: Sequence[Value], value: int, at: At) -> Instance:
    """The instance of a value that a step at these turns reads or writes."""
    over = values[value].over
    return value, tuple(entry for entry in at if entry[0] in over)


def gathered(steps: Sequence[Step | Compute]) -> list[Step | Compute]:
    """The steps, a Slice of a turn before the ops that it stands between if they make nothing of it: one call."""
    found: list[Step | Compute] = []
    run: list[Compute] = []
    made: set[int] = set()
    for step in steps:
        if run and isinstance(step, Slice) and step.at and step.at == run[0].at and step.src not in made:
            found.insert(len(found) - len(run), step)
            continue
        if not isinstance(step, Compute) or (run and run[0].at != step.at):
            run, made = [], set()
        if isinstance(step, Compute):
            run.append(step)
            made.update(step.outs)
        found.append(step)
    return found
