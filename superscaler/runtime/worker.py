"""The worker: its part of the state, its arena, and an execution of every entry that it has a part in.

The methods are what a job asks of a worker, in this process or in another: their arguments and results are data.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from superscaler.errors import OutOfMemory, SuperscalerError, WorkerError
from superscaler.ir.plan import Plan
from superscaler.ir.region import Region
from superscaler.runtime import heap
from superscaler.runtime.arena import WorkerMemory
from superscaler.runtime.binding import program_of
from superscaler.runtime.comm import Comm, Handle
from superscaler.runtime.compiling import compiled, plain
from superscaler.runtime.execution import Execution, Numbers, Run
from superscaler.runtime.files import read_region
from superscaler.runtime.measuring import peak
from superscaler.runtime.ops import set_device
from superscaler.runtime.packing import packing
from superscaler.runtime.rehearsal import Rehearsal
from superscaler.runtime.writer import Bodies
from superscaler.transforms.cache import START

Parts = list[tuple[Region, Tensor]]


@dataclass(frozen=True)
class WorkerOptions:
    """How workers run. ``device``: "cpu", or "cuda:0" for a GPU. ``limit``: seconds that one wait may take.

    ``threads``: of each worker's ops; None leaves them as they are.
    """

    device: str = "cpu"
    compile: bool = False
    memory: int | None = None
    limit: float = 300.0
    threads: int | None = None


class Worker:
    """One worker of a plan."""

    def __init__(
        self, plan: Plan, index: int, comm: Comm, *, device: torch.device, bodies: Bodies, budget: int | None = None
    ) -> None:
        self.plan = plan
        self.index = index
        self.device = device
        self.measuring = False
        self.workspace: int | None = None
        self.closed = False
        self.entries: dict[str, Execution] = {}
        self.storage = WorkerMemory(plan, index, device, budget)
        if device.type == "cpu":
            heap.keep()
        try:
            self._prepare(comm, bodies)
        except BaseException:
            self.close()
            raise

    def _prepare(self, comm: Comm, bodies: Bodies) -> None:
        plan, storage, index = self.plan, self.storage, self.index
        self.state = storage.state
        self.regions = {tensor.name: region for tensor, region in storage.regions.items()}
        programs = {name: program_of(entry, index) for name, entry in plan.entries.items()}
        self.entries = {
            name: Execution(plan, plan.entries[name], program, index, comm, self._held(), storage, self.device, bodies)
            for name, program in programs.items()
            if program is not None
        }
        storage.populate()
        if isinstance(comm, Rehearsal) and not storage.caches:
            with storage.allocating():
                comm.run(self.entries.values())
        for tensor in storage.regions:
            if tensor.name in self.state:
                self.state[tensor.name].fill_(0.0 if isinstance(tensor.init, str) else tensor.init)

    def _held(self) -> dict[str, Tensor]:
        """State and the filled rows of caches."""
        return self.state | {name: cache.tensor() for name, cache in self.storage.caches.items()}

    def _fill(self, execution: Execution, inputs: Mapping[str, Tensor]) -> None:
        """Memory for the rows that this run appends to the caches: views of more rows take the place of the old."""
        rows = int(inputs[START]) + execution.appends if START in inputs else 0
        for name, cache in self.storage.caches.items():
            if cache.grow(rows):
                view = cache.tensor()
                for other in self.entries.values():
                    other.hold(name, view)

    def empty(self) -> None:
        """Give back the memory of all caches."""
        for name, cache in self.storage.caches.items():
            cache.trim()
            for execution in self.entries.values():
                execution.hold(name, cache.tensor())

    def run(self, entry: str, inputs: Mapping[str, Tensor], seed: tuple[int, int]) -> Generator[Handle, None, None]:
        """One run of an entry; yields what it waits for. Errors of ops name the worker and the task."""
        execution = self.entries.get(entry)
        if execution is None:
            return
        try:
            if self.storage.caches:
                self._fill(execution, inputs)
            run = inside(self.storage.allocating, execution.run(inputs, seed))
            if not self.measuring:
                yield from run
                return
            with peak(self.device) as found:
                yield from run
            self.workspace = found.bytes
        except SuperscalerError:
            raise
        except torch.OutOfMemoryError as e:
            room = self.storage.pool.budget
            raise OutOfMemory(
                f"worker {self.index} ran out of memory in {execution.task()}",
                f"of {room:,} bytes {self.storage.pool.stats().mapped:,} are mapped",
                str(e).partition("\n")[0],
                hint="more memory for each worker; more micro-batches or recompute need less",
            ) from e
        except Exception as e:
            raise WorkerError(
                f"worker {self.index} failed in {execution.task()}",
                f"{type(e).__name__}: {e}",
                hint="the same inputs and weights with backend='inline' show where",
            ) from e

    def report(self, numbers: Numbers) -> None:
        """Write the number of every item that begins into ``numbers[0]``."""
        for execution in self.entries.values():
            execution.progress = numbers

    def task(self, entry: str) -> str:
        """The task that is running, or ran last."""
        return self.entries[entry].task() if entry in self.entries else "none"

    def scalars(self, entry: str) -> dict[str, float]:
        """The scalar outputs that this worker holds."""
        parts = self.outputs(entry)
        return {name: held[0][1].item() for name, held in parts.items() if held and held[0][0] == Region()}

    def outputs(self, entry: str) -> dict[str, Parts]:
        """Output -> the parts of it that this worker holds."""
        execution = self.entries.get(entry)
        return {} if execution is None else {n: execution.held(v) for n, v in execution.program.outputs.items()}

    def gradients(self, entry: str) -> dict[str, Parts]:
        """Parameter -> the parts of its gradient in the last run that this worker holds."""
        execution = self.entries.get(entry)
        return {} if execution is None else {n: execution.held(v) for n, v in execution.program.gradients.items()}

    def parts(self, names: Sequence[str]) -> dict[str, tuple[Region, Tensor]]:
        """Of the named state tensors, the parts that this worker holds."""
        return {n: (self.regions[n], self.state[n]) for n in names if n in self.state}

    def load(self, parts: Mapping[str, Tensor]) -> None:
        """Copy local parts of state tensors in."""
        for name, part in parts.items():
            self.state[name].copy_(part)

    def load_files(self, sources: Sequence[tuple[str, Path, str]]) -> None:
        """Read the worker's regions of state tensors: (state tensor, safetensors file, name in it)."""
        for name, path, key in sources:
            if name in self.state:
                self.state[name].copy_(read_region(path, key, self.regions[name]))

    def fill(self, values: Mapping[str, float]) -> None:
        """Set state tensors to a number each."""
        for name, value in values.items():
            if name in self.state:
                self.state[name].fill_(value)

    def draw(self, names: Mapping[str, str], seed: int) -> None:
        """Draw state tensors, normal with standard deviation 0.02; the same numbers however they are split.

        ``names``: state tensor -> the name that its numbers depend on.
        """
        shapes = {t.name: t.shape for t in self.plan.state}
        for name, stream in names.items():
            if name in self.state:
                generator = torch.Generator().manual_seed(crc32(f"{seed}/{stream}".encode()))
                whole = torch.empty(shapes[name]).normal_(0.0, 0.02, generator=generator)
                self.state[name].copy_(packing(Region.full(shapes[name]), self.regions[name]).take(whole))

    def times(self, entry: str) -> list[tuple[int, int]]:
        """Start and end of every item of the last run, in nanoseconds of this machine's monotonic clock."""
        return self.entries[entry].clock.times() if entry in self.entries else []

    def measure(self, on: bool) -> None:
        """Whether runs measure their workspace."""
        self.measuring = on

    def _bytes_in(self, memory: str) -> int:
        held = [t.name for t in self.storage.regions if t.memory == memory and t.name in self.state]
        return sum(self.state[name].numel() * self.state[name].element_size() for name in held)

    def memory(self) -> dict[str, int]:
        """Bytes: ``state`` (on the device) and ``host`` (in its host's memory), ``arena`` (the end of its highest
        value), ``caches`` (their mapped part), ``planned`` (the plan's peak), ``mapped`` (chunks of state, arena and
        caches now) and ``most_mapped``, ``physical`` (what the system has given for them so far) and ``copied`` (what
        all bodies, run once, write to the arena by copies); once measured, ``workspace`` (the most that a run had
        allocated beside them) and ``peak``, the sum of state, arena and workspace."""
        stats = self.storage.pool.stats()
        bodies = [body for e in self.entries.values() for body in e.context.used.values()]
        found = {
            "state": self._bytes_in("device"),
            "host": self._bytes_in("host"),
            "arena": self.storage.arena.peak,
            "caches": sum(cache.memory.mapped for cache in self.storage.caches.values()),
            "mapped": stats.mapped,
            "most_mapped": stats.peak,
            "physical": stats.physical,
            "planned": max((e.program.peak for e in self.entries.values()), default=0),
            "copied": sum(body.copied for body in bodies),
        }
        if self.workspace is not None:
            found["workspace"] = self.workspace
            found["peak"] = found["state"] + found["arena"] + self.workspace
        return found

    def close(self) -> None:
        """Give all memory back to the system."""
        self.entries.clear()
        self.storage.close()
        if self.device.type == "cpu" and not self.closed:
            heap.give_back()
        self.closed = True


def inside(context: Callable[[], AbstractContextManager[None]], run: Run) -> Run:
    """The same run, within a context; not while it waits, when other workers of this process may be in theirs."""
    while True:
        with context():
            handle = next(run, None)
        if handle is None:
            return
        yield handle


def bodies_of(options: WorkerOptions) -> Bodies:
    """None yet; for all workers of one plan in this process."""
    return Bodies(compiled if options.compile else plain)


def make_worker(plan: Plan, index: int, comm: Comm, options: WorkerOptions, bodies: Bodies | None = None) -> Worker:
    """A worker on its device. ``bodies``: what others of the same plan have made in this process."""
    device = torch.device(options.device)
    set_device(device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with torch.no_grad():
        comm = Rehearsal(comm) if options.compile else comm
        return Worker(plan, index, comm, device=device, bodies=bodies or bodies_of(options), budget=options.memory)
