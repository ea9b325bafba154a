"""What is particular to the host backend."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memory_pools import CHUNK, open_pool
from shadow import Fuse, failing

from superscaler.errors import BackendUnavailable, OutOfMemory
from superscaler.runtime.memory import Pool
from superscaler.runtime.memory.host import HostBackend
from superscaler.runtime.memory.mappings import MappingMeter, count
from superscaler.runtime.memory.syscalls import LinuxMemory

GIB, HUGE_PAGE = 1 << 30, 2 << 20


def test_too_many_mappings_are_refused_and_nothing_is_lost():
    meter = MappingMeter(limit=count() + 40)
    with open_pool("host", chunks=4096, seam=LinuxMemory(meter)) as pool:
        a, b = pool.reserve(GIB, "even"), pool.reserve(GIB, "odd")

        def interleave() -> None:  # two ranges made of each other's chunks: no neighbours are alike
            for _ in range(100):
                a.extend(CHUNK)
                b.extend(CHUNK)
                b.share(a, CHUNK, start=a.size - CHUNK)

        with pytest.raises(OutOfMemory, match=r"too many memory mappings(.|\n)*larger chunk"):
            interleave()
        assert count() <= meter.limit + 4
        a.tensor((CHUNK,), torch.uint8)
        a.free()
        b.free()
        c = pool.reserve(GIB)
        c.extend(CHUNK)


def test_counting_mappings_is_rare_far_from_the_limit(monkeypatch):
    counted = []
    monkeypatch.setattr("superscaler.runtime.memory.mappings.count", lambda: counted.append(1) or 100)
    meter = MappingMeter(limit=1100)
    for _ in range(500):
        meter.charge(1, refusable=True)
    assert len(counted) == 1


def test_chunks_that_are_shared_are_never_punched():
    with open_pool("host") as pool:
        a, b = pool.reserve(GIB), pool.reserve(GIB)
        a.extend(4 * CHUNK)
        a.tensor((4 * CHUNK,), torch.uint8).fill_(6)
        b.share(a, 2 * CHUNK)
        before = pool.stats().calls.get("fallocate", 0)
        a.free()
        assert pool.stats().physical == 2 * CHUNK
        assert pool.stats().calls["fallocate"] == before + 1
        assert (b.tensor((2 * CHUNK,), torch.uint8) == 6).all()


def test_populating_keeps_the_content():
    with Pool("host", budget=8 << 20) as pool:
        a = pool.reserve(GIB)
        a.extend(8 << 20)
        x = a.tensor((8 << 20,), torch.uint8)
        x[:: 1 << 20] = 5
        a.populate()
        assert pool.stats().physical == 8 << 20
        assert (x[:: 1 << 20] == 5).all()
        assert a.address % (2 << 20) == 0
        a.free()
        assert pool.stats().physical == 0


class OffByAPage(LinuxMemory):
    """A system that begins ranges anywhere, and has said what it was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: list[tuple[int, int]] = []

    def mmap(self, address: int | None, length: int, *rest: int) -> int:
        if address is not None:
            return super().mmap(address, length, *rest)
        start = super().mmap(None, length + 2 * HUGE_PAGE, *rest)
        address, end = -(-start // HUGE_PAGE) * HUGE_PAGE + 4096, start + length + 2 * HUGE_PAGE
        super().munmap(start, address - start)
        super().munmap(address + length, end - address - length)
        return address

    def munmap(self, address: int, length: int) -> None:
        self.returned.append((address, address + length))
        super().munmap(address, length)


@pytest.mark.parametrize("guard", ["trap", "zero"])
def test_ranges_begin_where_a_huge_page_can_wherever_the_system_puts_them(guard):
    system = OffByAPage()
    with open_pool("host", seam=system, guard=guard) as pool:
        a = pool.reserve(8 * HUGE_PAGE)
        assert a.address % HUGE_PAGE == 0
        # The first try, and what was too much before and behind the second.
        _, behind, before = system.returned
        assert before[1] == a.address
        assert behind[0] == a.address + a.reserved
        assert behind[1] - before[0] == a.reserved + HUGE_PAGE
        a.extend(CHUNK)
        a.tensor((CHUNK,), torch.uint8).fill_(3)
        assert pool.stats().physical == CHUNK


@pytest.mark.parametrize("system", [LinuxMemory, OffByAPage])
def test_reservations_that_the_system_refuses_leave_nothing_behind(system):
    memory = failing(system, ("mmap", "munmap", "madvise"), OSError)()
    memory.fuse = Fuse()
    with open_pool("host", seam=memory) as pool:
        before = count()
        for after in range(6):
            for failures in (1, 2, 3):
                for _ in range(10):
                    memory.fuse.arm(after, failures)
                    with contextlib.suppress(OutOfMemory):
                        a = pool.reserve(GIB)
                        memory.fuse.disarm()
                        a.extend(3 * CHUNK)
                        a.tensor((3 * CHUNK,), torch.uint8).fill_(1)
                        a.trim(CHUNK)
                        a.free()
                        del a
                    memory.fuse.disarm()
        assert count() - before < 20
        assert pool.stats().physical == pool.stats().reserved == 0


@pytest.mark.parametrize("size", [GIB, 5 * CHUNK])
def test_a_core_dump_passes_a_range_by(size):
    # It would read what is reserved page by page, and reading a page of the file makes it.
    with open_pool("host", guard="trap") as pool:
        a, b = pool.reserve(size), pool.reserve(size)
        a.extend(3 * CHUNK)
        b.share(a, CHUNK)
        b.trim(0)
        a.trim(CHUNK)
        for vtensor in (a, b):
            flags = flags_in(vtensor.address, vtensor.address + vtensor.reserved)
            assert flags
            assert all("dd" in of_one for of_one in flags)


def flags_in(begin: int, stop: int) -> list[list[str]]:
    """The flags of each of this process's mappings that has something between two addresses."""
    found: list[list[str]] = []
    start = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if name == "VmFlags:" and start < stop and begin < end:
            found.append(rest)
        elif not name.endswith(":"):
            start, end = (int(address, 16) for address in name.split("-"))
    return found


def test_a_closed_pool_has_no_memory_whoever_keeps_views_or_chunks():
    pool = open_pool("host")
    a = pool.reserve(GIB)
    a.extend(4 * CHUNK)
    view = a.tensor((4 * CHUNK,), torch.uint8).fill_(3)
    held = a.hold(0, 2 * CHUNK)
    file = next(fd for fd in map(int, os.listdir("/proc/self/fd")) if is_file_of(fd, "superscaler:test"))
    copy = os.dup(file)
    try:
        assert os.fstat(copy).st_blocks * 512 == 4 * CHUNK
        pool.close()
        assert os.fstat(copy).st_blocks == 0
    finally:
        os.close(copy)
    assert view.numel() == 4 * CHUNK
    assert held.size == 2 * CHUNK


def is_file_of(fd: int, name: str) -> bool:
    try:
        return f"memfd:{name}" in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False


def test_a_chunk_away_from_home_leaves_its_place_as_it_was():
    with open_pool("host") as pool:
        a, b = pool.reserve(GIB), pool.reserve(GIB)
        a.extend(2 * CHUNK)
        a.tensor((2 * CHUNK,), torch.uint8).fill_(6)
        b.share(a, 2 * CHUNK)
        a.writable(0, CHUNK)  # a copy: a's first chunk at home is b's now
        a.tensor((CHUNK,), torch.uint8).fill_(7)
        a.trim(0)
        a.extend(2 * CHUNK)
        assert not a.tensor((2 * CHUNK,), torch.uint8).any()
        assert (b.tensor((2 * CHUNK,), torch.uint8) == 6).all()
        b.free()
        a.trim(0)
        before = pool.stats().calls
        a.extend(2 * CHUNK)
        after = pool.stats().calls
        assert after["mprotect"] - before["mprotect"] == 1, "both are at home again"
        assert not a.tensor((2 * CHUNK,), torch.uint8).any()


def test_ranges_larger_than_the_address_space_are_refused():
    with open_pool("host") as pool, pytest.raises(OutOfMemory, match="no address range"):
        pool.reserve(1 << 60)


def test_without_descriptors_the_backend_says_so():
    program = """
import resource
from superscaler.errors import BackendUnavailable
from superscaler.runtime.memory import Pool
import superscaler.runtime.memory.host
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    Pool("host")
except BackendUnavailable as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "cannot create a memfd" in output


def test_a_limit_on_file_sizes_limits_chunk_numbers(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64 * CHUNK, 64 * CHUNK))
    with open_pool("host") as pool:
        with pytest.raises(OutOfMemory, match="no more chunk numbers"):
            pool.reserve(65 * CHUNK)
        pool.reserve(64 * CHUNK).extend(64 * CHUNK)


def test_it_needs_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BackendUnavailable, match="needs Linux"):
        HostBackend()
