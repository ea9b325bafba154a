"""A worker's memory: its state, arena and caches, all in one pool of virtual memory under one budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Protocol

import torch
from torch import Tensor

from superscaler.errors import InfeasiblePlan
from superscaler.ir.cluster import GIB
from superscaler.ir.graph import ITEMSIZE
from superscaler.ir.plan import Entry, Plan, StateTensor
from superscaler.ir.region import Region
from superscaler.runtime.binding import Binding, program_of
from superscaler.runtime.memory import Arena, Pool, VTensor
from superscaler.runtime.memory.mempool import open_memory_pool, release_libraries, settle_libraries
from superscaler.runtime.ops import DTYPES

ALIGNMENT = 64
CHUNK = 2 << 20
SMALL_CHUNK = 64 << 10  # on a host, for caches, and for less than LARGE: large chunks would be mostly padding
LARGE = 64 << 20
SEGMENTS = (2 + 20) << 20  # on a GPU: torch's allocator takes memory for small and for larger tensors in these pieces


class Storage(Protocol):
    """Where the values of a plan live: bytes at offsets."""

    def view(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor over the bytes at ``offset``."""
        ...


@dataclass(frozen=True)
class Need:
    """What one worker needs, in bytes. ``caches``: when they are full. ``pool``: all of these, each in whole chunks.
    ``beside``: inputs and the largest workspace of a task, as the plan predicts it."""

    state: int
    arena: int
    caches: tuple[int, ...]
    chunk: int
    beside: int

    @property
    def pool(self) -> int:
        sizes = (self.state, self.arena, *self.caches)
        return sum(-(-max(size, 1) // self.chunk) * self.chunk for size in sizes)

    @property
    def total(self) -> int:
        return self.pool + self.beside


def need_of(plan: Plan, worker: int, device: torch.device) -> Need:
    """What a worker needs for every entry of a plan."""
    regions = regions_of(plan, worker).items()
    state = sum(_aligned(_bytes(t, region)) for t, region in regions if t.kind != "cache" and t.memory == "device")
    caches = tuple(_bytes(t, region) for t, region in regions if t.kind == "cache")
    programs = [p for entry in plan.entries.values() if (p := program_of(entry, worker)) is not None]
    arena = max((p.arena for p in programs), default=0)
    workspace = max((p.peak - p.arena - state - sum(caches) for p in programs), default=0)
    inputs = max((_inputs(plan, entry, worker) for entry in plan.entries.values()), default=0)
    on_host = device.type == "cpu"
    chunk = SMALL_CHUNK if on_host and (caches or state + arena < LARGE) else CHUNK
    return Need(state, arena, caches, chunk, max(workspace, 0) + inputs + (0 if on_host else SEGMENTS))


def check_budget(plan: Plan, memory: int, device: torch.device) -> None:
    """Raise :class:`InfeasiblePlan` unless ``memory`` bytes are enough for each worker."""
    needs = [need_of(plan, worker, device) for worker in range(plan.workers)]
    worker, most = max(enumerate(needs), key=lambda n: n[1].total)
    if most.total > memory:
        raise InfeasiblePlan(
            f"{memory:,} bytes per worker are too few for this plan: worker {worker} needs {most.total:,}",
            f"state {most.state:,}, arena {most.arena:,}, caches {sum(most.caches):,}, in chunks of {most.chunk:,}",
            f"inputs and workspace of its largest task {most.beside:,}",
            hint=f"memory={most.total} (--memory {_gib(most.total)}) is the smallest that will do; "
            "more micro-batches or recompute need less",
        )


def _gib(size: int) -> str:
    """GiB as an option takes them, rounded up to a thousandth of a MiB."""
    return f"{ceil(size / GIB * 1e6) / 1e6:.6f}"


def regions_of(plan: Plan, worker: int) -> dict[StateTensor, Region]:
    """The state tensors that a worker holds, and which part of each."""
    found: dict[StateTensor, Region] = {}
    for tensor in plan.state:
        mesh = plan.space.mesh(tensor.layout.mesh)
        if worker in mesh.devices:
            found[tensor] = plan.space.region(tensor.shape, tensor.layout, mesh.coords(worker))
    return found


def _inputs(plan: Plan, entry: Entry, worker: int) -> int:
    program = program_of(entry, worker)
    if program is None:
        return 0
    binding = Binding(plan, entry, program, worker)
    return sum(binding.local(v, {}).volume * binding.dtype(v).itemsize for v in program.inputs.values())


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(tensor: StateTensor, region: Region) -> int:
    return region.volume * ITEMSIZE[tensor.dtype]


class Cache:
    """A state tensor that fills row by row: addresses for all of it, memory for the rows there are."""

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype, self.chunk = shape, dtype, pool.chunk
        self.row = prod(shape[1:]) * dtype.itemsize
        self.memory: VTensor = pool.reserve(max(self.row * shape[0], 1), owner="cache")
        self.rows = 0

    def grow(self, rows: int) -> bool:
        """Have memory for the first ``rows`` rows; whether more had to be mapped. Raises :class:`OutOfMemory`."""
        if rows <= self.rows:
            return False
        size = min(-(-rows * self.row // self.chunk) * self.chunk, self.memory.reserved)
        self.memory.extend(size - self.memory.size)
        self.rows = min(size // self.row, self.shape[0])
        return True

    def trim(self) -> None:
        """Give all memory back."""
        self.memory.trim(0)
        self.rows = 0

    def tensor(self) -> Tensor:
        """The rows for which there is memory."""
        return self.memory.tensor((self.rows, *self.shape[1:]), self.dtype)


class WorkerMemory:
    """The pool of one worker, with its state, its caches, and its arena: the values that outlive a task, at the plan's
    offsets. On a GPU also with what ops allocate: see :meth:`allocating`.

    ``budget``: bytes that the worker may use in all; without one, the pool has what the plan needs and no more (on a
    GPU: what the device has). Raises :class:`OutOfMemory` where the machine has less.
    """

    def __init__(self, plan: Plan, worker: int, device: torch.device, budget: int | None = None) -> None:
        self.need = need_of(plan, worker, device)
        self.device = device
        self._activations: Any = None
        if device.type == "cpu":
            room = self.need.pool if budget is None else max(self.need.pool, budget - self.need.beside)
            self.pool = Pool("host", room, self.need.chunk, name=f"worker {worker}")
        else:
            settle_libraries(device)
            room = torch.cuda.mem_get_info(device)[0] if budget is None else budget
            self.pool = Pool("cuda", room, self.need.chunk, name=f"worker {worker}")
        try:
            if device.type != "cpu":
                self._activations = open_memory_pool(self.pool)
            self._allocate(plan, worker)
        except BaseException:
            self.pool.close()
            raise

    def _allocate(self, plan: Plan, worker: int) -> None:
        self.regions = regions_of(plan, worker)
        self.store = Arena(self.pool, self.need.state, owner="state")
        self.arena = Arena(self.pool, self.need.arena, owner="arena")
        self.state: dict[str, Tensor] = {}
        self.caches: dict[str, Cache] = {}
        offset = 0
        for tensor, region in self.regions.items():
            if tensor.kind == "cache":
                self.caches[tensor.name] = Cache(self.pool, region.shape, DTYPES[tensor.dtype])
                continue
            if tensor.memory == "host":
                pinned = self.device.type == "cuda"  # a GPU copies from and to such memory without waiting
                self.state[tensor.name] = torch.empty(region.shape, dtype=DTYPES[tensor.dtype], pin_memory=pinned)
                continue
            self.state[tensor.name] = self.store.tensor(offset, region.shape, DTYPES[tensor.dtype])
            offset += _aligned(_bytes(tensor, region))

    def view(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor over the arena's bytes at ``offset``, which stay mapped until :meth:`close`: every run needs them
        again."""
        self.arena.acquire(offset, prod(shape) * dtype.itemsize)
        return self.arena.view(offset, shape, dtype)

    def allocating(self) -> AbstractContextManager[None]:
        """While this is entered, torch's allocator takes its memory on the GPU from the pool: one budget for all."""
        return nullcontext() if self._activations is None else torch.cuda.use_mem_pool(self._activations, self.device)

    def populate(self) -> None:
        """Have all of it backed by memory now, in huge pages where there are any: no page fault slows a step."""
        if self.need.state + self.need.arena >= LARGE:
            self.store.populate()
            self.arena.populate()

    def close(self) -> None:
        """Give everything back; tensors that are still held meet the guard."""
        self.state.clear()
        # torch gives back what it has kept for later, while there is somebody to take it.
        if self._activations is not None:
            release_libraries()
            self._activations = None
        self.pool.close()
