"""A worker on a GPU, as far as that can be had without one: the driver, and torch's allocator, are stand-ins.

State and arena then lie in the memory that the stand-in driver maps, so what is computed there is computed in earnest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import small_plans as plans
import torch
from fake_driver import FakeDriver

from superscaler.errors import InfeasiblePlan, OutOfMemory
from superscaler.runtime import arena, clock, launch, worker
from superscaler.runtime.arena import SEGMENTS, WorkerMemory, check_budget, need_of

GPU = torch.device("cuda")
FREE = 256 << 20
ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
FREE_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)


class MemPool:
    """As torch's: takes segments by the callbacks when asked, gives them back when it is dropped."""

    active: list[MemPool]

    def __init__(self, addresses: tuple[int, int]) -> None:
        self.allocate, self.give_back = ALLOCATE(addresses[0]), FREE_CALL(addresses[1])
        self.segments: dict[int, int] = {}

    def segment(self, size: int) -> None:
        address = self.allocate(size, 0, None)
        if not address:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.\nmore")
        ctypes.memset(address, 7, size)
        self.segments[address] = size

    def __del__(self) -> None:
        for address, size in self.segments.items():
            self.give_back(address, size, 0, None)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The device's driver; torch's memory pools are stand-ins, and those entered now are in ``MemPool.active``."""
    found = FakeDriver(memory=FREE)

    @contextmanager
    def use(pool: MemPool, device: torch.device) -> Iterator[None]:
        MemPool.active.append(pool)
        yield
        assert MemPool.active.pop() is pool

    MemPool.active = []
    monkeypatch.setattr("superscaler.runtime.memory.cuda.CudaDriver", lambda: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, FREE))
    monkeypatch.setattr(torch._C, "_cuda_customAllocator", lambda *addresses: addresses, raising=False)
    monkeypatch.setattr(torch.cuda, "MemPool", MemPool)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", use)
    monkeypatch.setattr(arena, "settle_libraries", lambda device: None)
    monkeypatch.setattr(arena, "release_libraries", lambda: None)

    def on_the_device(plan: Any, index: int, device: torch.device, budget: int | None) -> WorkerMemory:
        return WorkerMemory(plan, index, GPU, budget)

    monkeypatch.setattr(worker, "WorkerMemory", on_the_device)
    return found


def test_steps_in_the_devices_memory_and_all_of_it_back(driver: FakeDriver) -> None:
    want = plans.Reference().steps(3)
    with launch.launch(plans.in_arena(plans.whole()), plans.Reference(), backend="inline") as job:
        assert [job.step(plans.batch()) for _ in range(3)] == pytest.approx(want, rel=1e-9)
        assert driver.live >= need_of(job.plan, 0, GPU).pool
    assert driver.live == 0
    assert not driver.ranges


def test_what_ops_allocate_comes_from_the_workers_own_pool(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two workers in one process, each is in its pool while it runs, and in none while it waits."""
    seen: dict[int, set[int]] = {}
    plain = worker.Execution.run

    def watched(self: worker.Execution, *args: Any) -> worker.Run:
        for handle in plain(self, *args):
            (pool,) = MemPool.active
            seen.setdefault(self.binding.worker, set()).add(id(pool))
            pool.segment(2 << 20)
            yield handle

    monkeypatch.setattr(worker.Execution, "run", watched)
    with launch.launch(plans.pipelined(), plans.Reference(), backend="inline") as job:
        job.step(plans.batch())
        assert MemPool.active == []
        assert [len(pools) for pools in seen.values()] == [1, 1]
        assert seen[0] != seen[1]
        owners = {row.owner: row.mapped for w in job._crew.workers for row in w.storage.pool.owners()}  # type: ignore[union-attr]
        assert owners["activations"] > 0
    assert driver.live == 0, "torch's segments went back before the pool was closed"


def test_running_out_in_the_middle_names_worker_and_task(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = worker.Execution.run

    def hungry(self: worker.Execution, *args: Any) -> worker.Run:
        yield from plain(self, *args)
        MemPool.active[-1].segment(64 << 20)

    plan = plans.in_arena(plans.whole())
    need = need_of(plan, 0, GPU).total
    with launch.launch(plan, plans.Reference(), backend="inline", memory=need) as job:
        job.step(plans.batch())
        monkeypatch.setattr(worker.Execution, "run", hungry)
        with pytest.raises(OutOfMemory, match=r"worker 0 ran out of memory in \w+") as caught:
            job.step(plans.batch())
        assert "Tried to allocate 67108864 bytes." in caught.value.details[-1]
    assert driver.live == 0


def test_a_budget_on_a_device_has_room_for_torchs_segments(driver: FakeDriver) -> None:
    plan = plans.in_arena(plans.whole())
    need = need_of(plan, 0, GPU)
    assert need.beside >= SEGMENTS
    check_budget(plan, need.total, GPU)
    with pytest.raises(InfeasiblePlan, match="is the smallest"):
        check_budget(plan, need.total - 1, GPU)
    memory = WorkerMemory(plan, 0, GPU, need.total)
    with memory.allocating():
        MemPool.active[-1].segment(2 << 20)
        MemPool.active[-1].segment(20 << 20)
    assert memory.pool.stats().mapped <= need.total
    memory.close()


def test_what_libraries_keep_is_never_left_in_memory_that_goes(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS works in what it once allocated, also after the pool that it was allocated in."""
    workspace: list[int] = []  # the bytes of the device that were in use when it was allocated

    def product() -> None:
        if not workspace:
            if MemPool.active:
                MemPool.active[-1].segment(32 << 20)
            workspace.append(driver.live)

    def settle(device: torch.device) -> None:
        workspace.clear()
        product()

    monkeypatch.setattr(arena, "settle_libraries", settle)
    monkeypatch.setattr(arena, "release_libraries", workspace.clear)
    plan = plans.in_arena(plans.whole())
    for _ in range(2):
        memory = WorkerMemory(plan, 0, GPU, need_of(plan, 0, GPU).total)
        with memory.allocating():
            product()
        assert workspace == [0], "allocated before the pool was"
        memory.close()
        assert not workspace
        assert driver.live == 0


def test_workers_on_a_gpu_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group of NCCL is made for one device by number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[worker.WorkerOptions] = []
    monkeypatch.setattr(launch, "_crew", lambda plan, backend, options: asked.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch.launch(plans.whole(), plans.Reference(), backend="inline")
    assert torch.device(asked[0].device) == torch.device("cuda", 0)


class Event:
    """Torch's events, on a stream whose time is counted."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        Event.now += 1.5
        self.at = Event.now

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_a_devices_clock_goes_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    found = clock.clock(2, GPU)
    assert found.times() == [(0, 0), (0, 0)]
    found.restart()
    for number in (1, 0):
        found.begin(number)
        found.end(number)
    (a, b), (c, d) = found.times()
    assert waited == [GPU]
    assert [b - a, c - d, a - d] == [1_500_000, -1_500_000, 1_500_000]


def test_on_the_host_nothing_is_entered() -> None:
    memory = arena.WorkerMemory(plans.in_arena(plans.whole()), 0, torch.device("cpu"))
    with memory.allocating() as nothing:
        assert nothing is None
    memory.close()
