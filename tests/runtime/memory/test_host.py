"""What is particular to the host backend."""

import resource
import subprocess
import sys

import pytest
import torch
from memory_pools import CHUNK, open_pool

from superscaler.errors import BackendUnavailable, OutOfMemory
from superscaler.runtime.memory import Pool
from superscaler.runtime.memory.host import HostBackend
from superscaler.runtime.memory.mappings import MappingMeter, count
from superscaler.runtime.memory.syscalls import LinuxMemory

GIB = 1 << 30


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
