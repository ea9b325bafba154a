"""A pool: physical chunks under a budget, and the address ranges they are mapped into.

with Pool(backend="host", budget=2 << 30, chunk=2 << 20) as pool:
    a = pool.reserve(1 << 40)
    a.extend(64 << 20)
    x = a.tensor((4096, 8, 128), torch.float16)
"""

from __future__ import annotations

from inspect import ismethod

from superscaler.errors import UsageError, did_you_mean
from superscaler.ir.argument import shown
from superscaler.runtime.memory.backend import Backend, Guard
from superscaler.runtime.memory.sizes import bytes_of, text_of
from superscaler.runtime.memory.space import AddressSpace, Reclaimer
from superscaler.runtime.memory.stats import PoolStats
from superscaler.runtime.memory.table import MemoryRow
from superscaler.runtime.memory.vtensor import VTensor

BACKENDS = ("host", "cuda")


class Pool:
    """Physical memory of ``budget`` bytes, in chunks of ``chunk`` bytes, that vTensors map.

    ``backend``: ``"host"``, ``"cuda"``, or an object with the contract of :class:`~.backend.Backend` (which then
    brings its own chunk size and guard). ``guard``: what an access outside the mapped prefix meets: ``"trap"`` (a fault
    that names the owner) or ``"zero"`` (it reads zeros; a write traps). ``lazy``: ``trim`` and ``free`` return at once,
    and a background thread unmaps and gives the memory back; otherwise it has gone back when they return.

    Raises :class:`UsageError` for a bad parameter, :class:`BackendUnavailable` where the backend cannot run.
    """

    def __init__(
        self,
        backend: str | Backend = "host",
        budget: int = 1 << 30,
        chunk: int = 2 << 20,
        *,
        guard: Guard = "trap",
        lazy: bool = False,
        name: str = "pool",
    ) -> None:
        self.name = text_of(name, "a pool")
        self.budget = budget = bytes_of(budget, f"pool {name!r}, budget")
        if isinstance(backend, str) or not hasattr(backend, "chunk"):
            backend = open_backend(str(backend), chunk, guard, name)
        self.backend = backend
        self.chunk = self.backend.chunk
        if budget < self.chunk:
            self.backend.close()
            raise UsageError(
                f"budget={budget:,} is less than one chunk of {self.chunk:,} bytes",
                hint="a larger budget, smaller chunks",
            )
        self.space = AddressSpace(self.backend, budget // self.chunk, lazy=lazy, name=name)

    def reserve(self, size: int, owner: str = "vtensor") -> VTensor:
        """An address range of ``size`` bytes (rounded up to whole chunks) with nothing mapped; it costs no memory.

        ``owner`` is the name under which its memory is counted and errors are reported; many may share one. Raises
        :class:`UsageError` for a size that is no positive whole number, :class:`UseAfterFree` once the pool is closed.
        """
        size = bytes_of(size, text_of(owner, f"pool {self.name!r}, owner"))
        if size <= 0:
            raise UsageError(f"{owner}: a reservation of {size} bytes", hint="a positive number of bytes")
        return VTensor(self.space, *self.space.open_region(size, owner))

    def add_reclaimer(self, reclaim: Reclaimer) -> None:
        """``reclaim(nbytes)`` is called, without the pool's lock, when memory is short: it gives back what it can.

        It must be a method, and is forgotten when its object dies. Raises :class:`UsageError` for anything else.
        """
        if not ismethod(reclaim):
            raise UsageError(
                f"pool {self.name!r}: {shown(reclaim)} is no method", hint="a method of whoever has memory"
            )
        self.space.add_reclaimer(reclaim)

    def remove_reclaimer(self, reclaim: Reclaimer) -> None:
        """The reclaimer is asked no more."""
        self.space.remove_reclaimer(reclaim)

    def settle(self) -> None:
        """Wait until all that was freed has gone back to the system (a lazy pool does that in the background)."""
        self.space.settle()

    def stats(self) -> PoolStats:
        """The pool's figures now."""
        space = self.space
        with space.lock:
            accounts, counters, store, chunk = space.accounts.values(), space.counters, space.store, self.chunk
            stale = sum(len(region.stale) for region in space.regions)
            return PoolStats(
                budget=self.budget,
                chunk=chunk,
                reserved=sum(account.reserved for account in accounts),
                mapped=sum(account.mapped for account in accounts),
                committed=store.committed * chunk,
                physical=self.backend.physical(),
                shared=store.shared * chunk,
                peak=store.peak * chunk,
                waiting=(store.waiting + stale) * chunk,
                sync_maps=counters.sync_maps,
                sync_seconds=counters.sync_seconds,
                sync_longest=counters.sync_longest,
                ahead_maps=counters.ahead_maps,
                ahead_seconds=counters.ahead_seconds,
                calls=self.backend.calls(),
            )

    def owners(self) -> list[MemoryRow]:
        """Reserved, mapped and shared bytes by owner."""
        with self.space.lock:
            return [account.row() for account in self.space.accounts.values()]

    def close(self) -> None:
        """Free everything and give the memory back. Live views keep their addresses, and meet the guard."""
        self.space.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.space.state
        return f"Pool({self.name!r}, {self.backend.name}, {state}, budget={self.budget:,}, chunk={self.chunk:,})"


def open_backend(name: str, chunk: int, guard: Guard, label: str) -> Backend:
    """The backend of that name."""
    chunk = bytes_of(chunk, f"pool {label!r}, chunk")
    if guard not in ("trap", "zero"):
        raise UsageError(f"unknown guard {guard!r}", hint=did_you_mean(str(guard), ("trap", "zero")))
    if name == "host":
        from superscaler.runtime.memory.host import HostBackend

        return HostBackend(chunk, guard, label=label)
    if name == "cuda":
        from superscaler.runtime.memory.cuda import CudaBackend

        return CudaBackend(chunk, guard)
    raise UsageError(f"unknown memory backend {name!r}", hint=did_you_mean(name, BACKENDS))
