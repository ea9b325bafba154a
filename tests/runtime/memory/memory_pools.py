"""Pools for the tests: the same contract on the host backend and on the CUDA backend over a driver that keeps books."""

from typing import Any

from fake_driver import FakeDriver

from superscaler.runtime.memory import Pool
from superscaler.runtime.memory.cuda import CudaBackend
from superscaler.runtime.memory.host import HostBackend
from superscaler.runtime.memory.syscalls import LinuxMemory

CHUNK = 1 << 16
BACKENDS = ("host", "cuda")


def open_pool(
    backend: str,
    chunks: int = 64,
    *,
    guard: Any = "trap",
    lazy: bool = False,
    seam: Any = None,
    name: str = "test",
    chunk: int = CHUNK,
) -> Pool:
    """A pool of so many chunks; ``seam`` replaces the system calls, or the driver."""
    if backend == "host":
        opened: Any = HostBackend(chunk, guard, label=name, system=seam or LinuxMemory())
    else:
        opened = CudaBackend(chunk, guard, driver=seam or FakeDriver())
    return Pool(backend=opened, budget=chunks * chunk, lazy=lazy, name=name)
