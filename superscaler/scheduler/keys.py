"""Keys of a profile: an op, or the body of a task, at the shapes that one worker has, in words that never change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from superscaler.ir.entry import Contents, Entry
from superscaler.ir.graph import ITEMSIZE, Graph, Op
from superscaler.ir.layout import Layout, Space
from superscaler.ir.program import Block, Call, Collective, Item, Program, Recv, Send
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.discovered import spelled
from superscaler.ir.rules.rule import Splits, op_layouts
from superscaler.transforms.usage import reads


def op_key(op: Op, graph: Graph, splits: Splits, space: Space, coords: Mapping[str, int] | None = None) -> str:
    """An op's part at ``coords`` (default: the first, which no other exceeds): target, arguments, dtypes and shapes."""
    ins, outs = op_layouts(rule_for(op, graph), splits, "", space)
    at = coords if coords is not None else dict.fromkeys((a for a, _ in splits), 0)

    def shown(name: str, layout: Layout) -> str:
        tensor = graph.tensor[name]
        return f"{tensor.dtype}{list(space.region(tensor.shape, layout, at).shape)}"

    left = ", ".join(shown(n, layout) for n, layout in zip(op.inputs, ins, strict=True))
    right = ", ".join(shown(n, layout) for n, layout in zip(op.outputs, outs, strict=True))
    return f"{op.target} {spelled(op.args)} {left} -> {right}"


def move_key(kind: str, ways: int, size: int) -> str:
    """A collective over ``ways`` workers, of a tensor whose complete part has ``size`` bytes."""
    return f"{kind} {ways} {size}"


class Keys:
    """Keys of the blocks that a role runs, as its first worker does."""

    def __init__(self, plan: Contents, entry: Entry, program: Program) -> None:
        self.plan, self.entry, self.program = plan, entry, program
        self.worker = program.workers[0]
        self._known: dict[tuple[int, int], str] = {}

    def block(self, number: int, microbatch: int) -> str:
        """A digest of all that a block computes and moves on the worker itself at a micro-batch."""
        found = self._known.get((number, microbatch))
        if found is None:
            block = self.program.blocks[number]
            lines = [line for step in block.steps for line in self._lines(block, step, microbatch)]
            found = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:40]
            self._known[number, microbatch] = found
        return found

    def _lines(self, block: Block, step: object, microbatch: int) -> list[str]:
        if isinstance(step, Call):
            at = self.coords(step.mesh, block, microbatch, dict(step.at))
            rows = self.entry.definitions[step.definition].rows
            ops = [(self.entry.graph.ops[step.base + row.offset], row.splits) for row in rows]
            return [op_key(op, self.entry.graph, splits, self.plan.space, at) for op, splits in ops]
        if isinstance(step, Collective | Send | Recv):
            return []
        return [f"{type(step).__name__} {self.bytes(v, block, microbatch)}" for v in reads(step)]  # type: ignore[arg-type]

    def coords(self, mesh: str, block: Block, microbatch: int, at: Mapping[str, int] | None = None) -> dict[str, int]:
        """The worker's indices along the axes of a mesh and along time."""
        times = dict.fromkeys(block.over, microbatch) | dict(at or {})
        times.setdefault(self.entry.microaxis, microbatch)
        return {**self.plan.space.mesh(mesh).coords(self.worker), **times}

    def bytes(self, value: int, block: Block, microbatch: int) -> int:
        """Bytes that the worker holds of a value."""
        described = self.program.values[value]
        tensor = self.entry.graph.tensor[described.tensor]
        layout = described.layout
        if self.worker not in self.plan.space.mesh(layout.mesh).devices:
            return 0
        coords = dict.fromkeys((a for a, _ in layout.states), 0) | self.coords(layout.mesh, block, microbatch)
        return self.plan.space.region(tensor.shape, layout, coords).volume * ITEMSIZE[tensor.dtype]

    def meetings(self, item: Item) -> dict[int, str]:
        """The keys of the collectives in an item, by their numbers in the plan."""
        block, found = self.program.blocks[item.block], dict[int, str]()
        for step in block.steps:
            if isinstance(step, Collective):
                group, size = self.moved(step, block, item.microbatch)
                if len(group) > 1:
                    found[step.comm] = move_key(step.kind, len(group), size)
        return found

    def moved(self, step: Collective, block: Block, microbatch: int) -> tuple[tuple[int, ...], int]:
        """The group of a collective, and the bytes of the complete part of what it moves."""
        group = next(g for g in self.entry.groupings[step.grouping].groups if self.worker in g)
        return group, self.bytes(step.src, block, microbatch) * (len(group) if step.kind == "all_gather" else 1)
