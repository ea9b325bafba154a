"""Grouping: consecutive ops of a block become one call of a definition; equal sequences share one definition."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from superscaler.ir.graph import Graph
from superscaler.ir.program import Call, Definition, Row, Step
from superscaler.ir.rules.rule import Splits
from superscaler.transforms.blocks import Body, Compute
from superscaler.transforms.usage import reads


class Definitions:
    """The definitions of an entry, each once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
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
        needed = set(outside)
        uses = _uses_after(body.steps)
        for position, step in enumerate(body.steps):
            if isinstance(step, Compute):
                if run and run[-1].at != step.at:
                    steps.append(self._call(run, needed | uses[position]))
                    run = []
                run.append(step)
                continue
            if run:
                steps.append(self._call(run, needed | uses[position]))
                run = []
            steps.append(step)
        if run:
            steps.append(self._call(run, needed))
        return tuple(steps)

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


def _uses_after(steps: Iterable[Step | Compute]) -> list[set[int]]:
    """For each position, the values read at or after it."""
    listed = list(steps)
    after: list[set[int]] = [set() for _ in listed]
    seen: set[int] = set()
    for i in range(len(listed) - 1, -1, -1):
        step = listed[i]
        seen = seen | set(step.ins if isinstance(step, Compute) else reads(step))
        after[i] = seen
    return after
