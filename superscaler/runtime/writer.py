"""What every step of a block needs to be written as code: where values are, and what all blocks share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from superscaler.ir.program import At, Block, Call
from superscaler.runtime.binding import Binding
from superscaler.runtime.blocks import Emitter
from superscaler.runtime.body import Body, Outputs, build
from superscaler.runtime.comm import Comm
from superscaler.runtime.copies import Copies
from superscaler.runtime.resolve import Resolved, Resolver
from superscaler.runtime.storage import Place

Prepare = Callable[[Body], Callable[..., Any]]
First = frozenset[tuple[int, int, int]]  # (block, micro-batch, step) of the steps that write first what others add to


@dataclass(frozen=True)
class Bodies:
    """The bodies of one plan, each made once for all workers of a process. ``prepare``: makes of one what is called."""

    prepare: Prepare
    made: dict[Any, tuple[Body, Callable[..., Any]]] = field(default_factory=dict)


@dataclass
class Context:
    """What all blocks of one worker's Program share. ``users``: blocks of each value; ``used``: the worker's bodies."""

    binding: Binding
    comm: Comm
    device: torch.device
    places: list[Place]
    users: Mapping[int, set[int]]
    first: First
    bodies: Bodies
    resolver: Resolver
    copies: Copies
    used: dict[Any, Body] = field(default_factory=dict)

    def body(self, call: Call, resolved: Resolved, uses: Outputs, storage: Mapping[int, int]) -> Callable[..., Any]:
        """What runs a call at these shapes, made once for all calls that are equal in that.

        ``storage``: outputs, by position, that go into the storage of another value.
        """
        into = tuple((p, self.binding.dtype(v)) for p, v in sorted(storage.items()))
        entry = id(self.binding.entry)  # which the plan has as long as its bodies are
        key = (entry, call.definition, resolved.lines, resolved.shapes, uses, into)
        found = self.bodies.made.get(key)
        if found is None:
            definition = self.binding.entry.definitions[call.definition]
            made = [self.binding.dtype(v) for v in call.outs]
            dtypes = {p: (d, self.binding.dtype(storage.get(p, call.outs[p]))) for p, d in enumerate(made)}
            body = build(f"definition_{call.definition}", resolved, definition.outs, uses, dtypes)
            found = self.bodies.made[key] = (body, self.bodies.prepare(body))
        self.used[key] = found[0]
        return found[1]


class Writer:
    """One block being written. ``out``: its lines and its table."""

    def __init__(self, context: Context, number: int) -> None:
        self.context = context
        self.binding = context.binding
        self.number = number
        self.block: Block = self.binding.program.blocks[number]
        self.alias: dict[int, int] = {}  # value -> the state value that it has become
        self.begun: set[str] = set()  # locals that have been written
        self.absorbed: set[int] = set()  # steps that a call carries out itself
        kind = re.sub(r"\W", "_", self.block.kind)
        self.out = Emitter(f"{kind}_{number}", self.block, self.var)

    def place(self, value: int) -> Place:
        """Where a value lives."""
        return self.context.places[value]

    def var(self, value: int, at: At) -> str:
        """A local name, or a register: ``r[3]``, ``r[12 + j]``."""
        value = self.alias.get(value, value)
        over = self.binding.program.values[value].over
        fixed = dict(at)
        if self.place(value) == "local":
            return f"v{value}" + "".join(f"_{fixed[a]}" for a in over if a in fixed)
        number, stride, by = 0, 1, 0
        for axis in reversed(over):
            if axis in fixed:
                number += fixed[axis] * stride
            elif axis in self.block.over:
                by = stride
            stride *= self.binding.space.axis(axis).ways
        base = self.binding.base[value] + number
        return f"r[{base}]" if not by else f"r[{base} + j]" if by == 1 else f"r[{base} + {by} * j]"

    def times(self, at: At, j: int) -> dict[str, int]:
        """Indices along the time axes of a step at a micro-batch."""
        return self.binding.times(self.block, j, at)

    def storage(self, value: int, at: At) -> str:
        """The storage that a step must write to, or None: it makes its own."""
        return self.var(value, at) if self.place(value) == "arena" else "None"

    def begins(self, step: int, j: int) -> bool:
        """Whether a step is the first to write what others add to, or write parts of."""
        return (self.number, j, step) in self.context.first
