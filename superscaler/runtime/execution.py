"""Execution: one worker in one entry, as a loop over the items of its Program.

Everything that follows from the plan is settled beforehand: the code of every block, the bindings of every instance,
what each item waits for, where each value lies. The same code runs in one process and in Ray actors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.plan import Entry, Plan
from superscaler.ir.program import Accumulate, Collect, Item, Program
from superscaler.ir.region import Region
from superscaler.runtime.arena import Storage
from superscaler.runtime.binding import Binding
from superscaler.runtime.blocks import Code
from superscaler.runtime.clock import clock
from superscaler.runtime.comm import Comm, Handle
from superscaler.runtime.copies import Copies
from superscaler.runtime.hazards import Access, receiving_early, waits
from superscaler.runtime.post import UnderWay
from superscaler.runtime.resolve import Resolver
from superscaler.runtime.steps import emit
from superscaler.runtime.storage import at_of, places, reads, users, writes
from superscaler.runtime.writer import Bodies, Context
from superscaler.transforms.cache import APPEND

Run = Generator[Handle, None, None]
Numbers = list[int] | memoryview  # the number of the item that was begun last stands at 0


@dataclass(frozen=True)
class Ready:
    """Item ``number``, bound: ``function(registers, microbatch, table, seed)``, after ``waits``, before clearing
    ``drops``."""

    number: int
    waits: tuple[int, ...]
    function: Callable[..., Any]
    microbatch: int
    table: tuple[Any, ...]
    generates: bool
    posted: bool
    drops: tuple[int, ...]


class Execution:
    """One worker in one entry."""

    def __init__(
        self,
        plan: Plan,
        entry: Entry,
        program: Program,
        worker: int,
        comm: Comm,
        state: Mapping[str, Tensor],
        storage: Storage,
        device: torch.device,
        bodies: Bodies,
    ) -> None:
        self.program = program
        self.binding = Binding(plan, entry, program, worker)
        using = users(program)
        self.places = places(program, using)
        self.registers: list[Tensor | None] = [None] * self.binding.registers
        self.spans = self._arena(storage)
        for name, value in program.state.items():
            self.registers[self.binding.base[value]] = state[name]
        resolver = Resolver(entry.graph, plan.space)
        first = _first_writes(self.binding)
        self.context = Context(self.binding, comm, device, self.places, using, first, bodies, resolver, Copies(device))
        self.codes: list[Code] = [emit(self.context, n) for n in range(len(program.blocks))]
        self.items = self._bind()
        self.last = self._ends()
        self.clock = clock(len(self.items), device)
        self.progress: Numbers = [-1]

    def _arena(self, storage: Storage) -> dict[int, tuple[int, int]]:
        """Views of the arena in the registers of its values; register -> its bytes."""
        spans: dict[int, tuple[int, int]] = {}
        for buffer in self.program.buffers:
            if self.places[buffer.value] != "arena":
                continue
            for times, offset in zip(self.binding.instances(buffer.value), buffer.offsets, strict=True):
                shape = self.binding.local(buffer.value, times).shape
                view = storage.view(offset, shape, self.binding.dtype(buffer.value))
                register = self.binding.register(buffer.value, times)
                self.registers[register] = view
                spans[register] = (offset, offset + view.numel() * view.element_size())
        return spans

    def _bind(self) -> list[Ready]:
        order = self.program.order
        accesses = [self._access(item) for item in order]
        posted = [self.codes[item.block].posted for item in order]
        receives = [p and self.codes[item.block].block.kind == "recv" for p, item in zip(posted, order, strict=True)]
        communicates = [self.codes[item.block].waits for item in order]
        numbers = receiving_early(accesses, receives, communicates, self.spans, ordered=self.context.comm.ordered)
        due = waits([accesses[n] for n in numbers], [posted[n] for n in numbers], self.spans)
        ready: list[Ready] = []
        for number, wait in zip(numbers, due, strict=False):
            item = order[number]
            code = self.codes[item.block]
            table, drops = code.table(item.microbatch), self._drops(item)
            others = tuple(numbers[w] for w in wait)
            ready.append(Ready(number, others, code.function, item.microbatch, table, code.waits, code.posted, drops))
        self.pending_at_end = tuple(numbers[w] for w in due[-1])
        return ready

    def _access(self, item: Item) -> Access:
        block = self.program.blocks[item.block]
        read: set[int] = set()
        written: set[int] = set()
        for step in block.steps:
            times = self.binding.times(block, item.microbatch, at_of(step))
            read |= {self.binding.register(v, times) for v in reads(step) if self.places[v] != "local"}
            written |= {self.binding.register(v, times) for v in writes(step) if self.places[v] != "local"}
        return Access(frozenset(read), frozenset(written))

    def _drops(self, item: Item) -> tuple[int, ...]:
        """The registers of held values that are released after an item."""
        if item.frees < 0:
            return ()
        kept = {*self.program.outputs.values(), *self.program.gradients.values()}
        return tuple(
            register
            for value in self.program.frees[item.frees]
            if self.places[value] in ("held", "input") and value not in kept
            for register in self._instances_of(value, item.microbatch)
        )

    def _instances_of(self, value: int, microbatch: int) -> list[int]:
        axis = self.binding.entry.microaxis
        found = self.binding.instances(value)
        return [self.binding.register(value, t) for t in found if t.get(axis, microbatch) == microbatch]

    def _ends(self) -> tuple[int, ...]:
        """The registers to clear when a run has ended: inputs, and held values that nobody asks for."""
        kept = {*self.program.outputs.values(), *self.program.gradients.values()}
        return tuple(
            self.binding.register(value, times)
            for value, place in enumerate(self.places)
            if place == "input" or (place == "held" and value not in kept)
            for times in self.binding.instances(value)
        )

    def run(self, inputs: Mapping[str, Tensor], seed: tuple[int, int]) -> Run:
        """One run of the entry: yields every handle that it waits for."""
        r = self.registers
        for name, value in self.program.inputs.items():
            r[self.binding.base[value]] = inputs[name].to(self.context.device)
        posts: dict[int, UnderWay] = {}
        begin, end, progress = self.clock.begin, self.clock.end, self.progress
        self.clock.restart()
        for item in self.items:
            progress[0] = number = item.number
            for other in item.waits:
                yield from posts.pop(other)
                end(other)
            begin(number)
            if not item.generates:
                item.function(r, item.microbatch, item.table, seed)
            elif item.posted:
                posts[number] = item.function(r, item.microbatch, item.table, seed)
            else:
                yield from item.function(r, item.microbatch, item.table, seed)
            end(number)
            for register in item.drops:
                r[register] = None
        for other in self.pending_at_end:
            yield from posts.pop(other)
            end(other)
        for register in self.last:
            r[register] = None

    def hold(self, state: str, tensor: Tensor) -> None:
        """A state tensor lies elsewhere from now on, or more of it is there."""
        value = self.program.state.get(state)
        if value is not None:
            self.registers[self.binding.base[value]] = tensor

    @cached_property
    def appends(self) -> int:
        """How many rows a run adds to each cache."""
        graph = self.binding.graph
        return max((graph.tensor[op.inputs[1]].shape[2] for op in graph.ops if op.target == APPEND), default=0)

    def task(self) -> str:
        """The item that is running, or ran last, in words."""
        return task_name(self.program, self.progress[0])

    def held(self, value: int) -> list[tuple[Region, Tensor]]:
        """The instances of a value with their regions."""
        found: list[tuple[Region, Tensor]] = []
        for times in self.binding.instances(value):
            tensor = self.registers[self.binding.register(value, times)]
            if tensor is not None:
                found.append((self.binding.local(value, times), tensor))
        return found


def task_name(program: Program, number: int) -> str:
    """An item of a Program, in words."""
    if number < 0:
        return "none"
    item = program.order[number]
    block = program.blocks[item.block]
    return f"{block.name}, micro-batch {item.microbatch}" if block.over else block.name


def _first_writes(binding: Binding) -> frozenset[tuple[int, int, int]]:
    """(block, micro-batch, step) of the first Accumulate or Collect into every instance."""
    seen: set[int] = set()
    first: set[tuple[int, int, int]] = set()
    for item in binding.program.order:
        block = binding.program.blocks[item.block]
        for i, step in enumerate(block.steps):
            if isinstance(step, Accumulate | Collect):
                register = binding.register(step.into, binding.times(block, item.microbatch, step.at))
                if register not in seen:
                    seen.add(register)
                    first.add((item.block, item.microbatch, i))
    return frozenset(first)
