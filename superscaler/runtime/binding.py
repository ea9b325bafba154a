"""Binding: what one worker's share of a Program is, computed from its coordinates.

Every instance of a value (one per index of the time axes that the value is *over*) has a number, its *register*.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod

import torch

from superscaler.ir.graph import Tensor
from superscaler.ir.plan import Entry, Plan
from superscaler.ir.program import At, Block, Program
from superscaler.ir.region import Region
from superscaler.runtime.ops import DTYPES


def program_of(entry: Entry, worker: int) -> Program | None:
    """The Program that a worker runs in an entry; None if it has no part in it."""
    return next((p for p in entry.programs if worker in p.workers), None)


class Binding:
    """One worker in one entry: registers of instances, their regions and shapes."""

    def __init__(self, plan: Plan, entry: Entry, program: Program, worker: int) -> None:
        self.plan = plan
        self.entry = entry
        self.program = program
        self.worker = worker
        self.graph = entry.graph
        self.space = plan.space
        self.base: list[int] = []
        count = 0
        for value in program.values:
            self.base.append(count)
            count += prod(self.space.axis(a).ways for a in value.over)
        self.registers = count
        self.region = lru_cache(maxsize=None)(self._region)

    def tensor(self, value: int) -> Tensor:
        """The logical tensor of a value."""
        return self.graph.tensor[self.program.values[value].tensor]

    def dtype(self, value: int) -> torch.dtype:
        return DTYPES[self.tensor(value).dtype]

    def times(self, block: Block, microbatch: int, at: At = ()) -> dict[str, int]:
        """Indices along the time axes for a step of a block at a micro-batch."""
        times = dict.fromkeys(block.over, microbatch)
        if not block.over and self.entry.microaxis:
            times[self.entry.microaxis] = microbatch
        times.update(at)
        return times

    def coords(self, mesh: str, times: dict[str, int]) -> dict[str, int]:
        """The worker's indices along the axes of a mesh, and along time."""
        return {**self.space.mesh(mesh).coords(self.worker), **times}

    def index(self, value: int, times: dict[str, int]) -> tuple[int, ...]:
        """Which instance of a value is meant."""
        return tuple(times[a] for a in self.program.values[value].over)

    def register(self, value: int, times: dict[str, int]) -> int:
        """The register of an instance: row-major over the axes that the value is over."""
        number = 0
        for axis in self.program.values[value].over:
            number = number * self.space.axis(axis).ways + times[axis]
        return self.base[value] + number

    def instances(self, value: int) -> list[dict[str, int]]:
        """The time indices of all instances of a value, in the order of their registers."""
        over = self.program.values[value].over
        return [dict(zip(over, i, strict=True)) for i in product(*(range(self.space.axis(a).ways) for a in over))]

    def local(self, value: int, times: dict[str, int], worker: int | None = None) -> Region:
        """The region that a worker (this one) holds of an instance."""
        return self.region(value, self.index(value, times), self.worker if worker is None else worker)

    def _region(self, value: int, index: tuple[int, ...], worker: int) -> Region:
        v = self.program.values[value]
        coords = {**self.space.mesh(v.layout.mesh).coords(worker), **dict(zip(v.over, index, strict=True))}
        return self.space.region(self.tensor(value).shape, v.layout, coords)
