"""What is particular to the CUDA backend, over a driver that keeps books."""

from enum import IntEnum

import pytest
import torch
from fake_driver import GRANULARITY, READ_WRITE, FakeDriver
from memory_pools import CHUNK, open_pool

from superscaler.errors import BackendUnavailable, OutOfMemory, UsageError
from superscaler.runtime.memory import Pool, cuda_driver
from superscaler.runtime.memory.cuda import CudaBackend

GIB = 1 << 30


def test_a_chunk_must_fit_the_granularity():
    with pytest.raises(UsageError, match="granularity of 65,536"):
        CudaBackend(GRANULARITY + 4096, driver=FakeDriver())


def test_a_span_takes_one_set_access_and_one_fill():
    driver = FakeDriver()
    with open_pool("cuda", seam=driver) as pool:
        pool.reserve(GIB).extend(16 * CHUNK)
        assert driver.calls["create"] == driver.calls["map"] == 16
        assert driver.calls["set_access"] == driver.calls["fill_zero"] == 1


def test_recycled_handles_show_nothing_of_their_past():
    driver = FakeDriver()
    pool = Pool(CudaBackend(CHUNK, spare=8, driver=driver), budget=8 * CHUNK)
    for _ in range(3):
        a = pool.reserve(GIB)
        a.extend(8 * CHUNK)
        x = a.tensor((8 * CHUNK,), torch.uint8)
        assert not x.any()
        x.fill_(3)
        a.free()
    assert driver.calls["create"] == 8, "handles are kept, creating them is what costs most"
    assert pool.stats().physical == 8 * CHUNK
    pool.close()
    assert driver.live == 0


def test_unmapping_waits_for_the_device():
    driver = FakeDriver()
    with open_pool("cuda", seam=driver) as pool:
        a = pool.reserve(GIB)
        a.extend(4 * CHUNK)
        before = driver.calls["synchronize"]
        a.trim(CHUNK)
        assert driver.calls["synchronize"] == before + 1
        assert driver.calls["unmap"] == 1, "neighbours go with one call"


@pytest.mark.parametrize("act", [lambda a, b: b.share(a, 2 * CHUNK), lambda a, b: a.hold(CHUNK, 3 * CHUNK)])
def test_nothing_becomes_read_only_while_a_kernel_may_have_to_write_it(act):
    class Behind(FakeDriver):
        """A device that has work to do since its memory could be written, until it is waited for."""

        idle = False

        def synchronize(self) -> None:
            super().synchronize()
            self.idle = True

        def set_access(self, address: int, size: int, *, writable: bool) -> None:
            places = range(address, address + size, CHUNK)
            assert writable or self.idle or not any(self.access[place] == READ_WRITE for place in places)
            self.idle = self.idle and not writable
            super().set_access(address, size, writable=writable)

    driver = Behind()
    with open_pool("cuda", seam=driver) as pool:
        a, b = pool.reserve(GIB), pool.reserve(GIB)
        a.extend(4 * CHUNK)
        assert driver.calls["synchronize"] == 0, "growing waits for nobody"
        act(a, b)
        assert driver.calls["synchronize"] == 1


def test_everything_goes_back_to_the_driver():
    driver = FakeDriver()
    with open_pool("cuda", guard="zero", seam=driver) as pool:
        a, b = pool.reserve(GIB), pool.reserve(GIB)
        a.extend(4 * CHUNK)
        b.share(a, 4 * CHUNK)
        b.writable(0, CHUNK)
        view = b.tensor((CHUNK,), torch.uint8)
        a.free()
        b.free()
    assert not view.any()
    assert driver.live == CHUNK, "the chunk of zeros, which views of a closed pool read"
    del view
    assert driver.live == 0
    assert not driver.ranges


def test_the_devices_own_limit_is_out_of_memory():
    with open_pool("cuda", chunks=64, seam=FakeDriver(memory=4 * CHUNK)) as pool:
        a = pool.reserve(GIB, owner="kv")
        a.extend(2 * CHUNK)
        with pytest.raises(OutOfMemory, match="refused to map memory for kv#1"):
            a.extend(3 * CHUNK)
        a.extend(2 * CHUNK)
        assert pool.stats().committed == 4 * CHUNK


class Refusal(IntEnum):
    CUDA_ERROR_OUT_OF_MEMORY = 2


class FakeApi:
    """As much of cuda-python as opening a device takes."""

    class CUdevice_attribute:
        CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102

    CUresult = Refusal

    def __init__(self, version: int = 12040, capable: int = 1) -> None:
        self.cuDriverGetVersion = lambda: (0, version)
        self.cuInit = lambda flags: (0,)
        self.cuDeviceGet = lambda device: (0, device)
        self.cuDeviceGetAttribute = lambda attribute, device: (0, capable)


def test_a_device_without_room_for_a_context_is_unavailable(monkeypatch):
    """As any other reason why it cannot be opened."""
    api = FakeApi()
    api.cuDevicePrimaryCtxRetain = lambda device: (Refusal.CUDA_ERROR_OUT_OF_MEMORY, None)
    monkeypatch.setattr(cuda_driver, "load_api", lambda: api)
    with pytest.raises(BackendUnavailable, match="cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY"):
        cuda_driver.CudaDriver()


@pytest.mark.parametrize(
    ("api", "why"), [(FakeApi(version=11080), "CUDA 11.8"), (FakeApi(capable=0), "device 0 cannot")]
)
def test_a_driver_too_old_is_named(monkeypatch, api, why):
    monkeypatch.setattr(cuda_driver, "load_api", lambda: api)
    with pytest.raises(BackendUnavailable, match=why):
        cuda_driver.CudaDriver()


def test_without_cuda_python_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendUnavailable, match=r"superscaler\[gpu\]"):
        cuda_driver.CudaDriver()


@pytest.mark.gpu
def test_on_a_real_device():
    with Pool("cuda", budget=64 << 20) as pool:
        a, b = pool.reserve(1 << 40), pool.reserve(1 << 40)
        a.extend(8 << 20)
        x = a.tensor((4 << 20,), torch.bfloat16)
        assert not x.any()
        x.fill_(2)
        b.share(a, 8 << 20)
        b.writable(0, 1)
        y = b.tensor((4 << 20,), torch.bfloat16)
        y[0] = 3
        assert x[0] == 2
        assert torch.equal(x[1:], y[1:])
        a.free()
        assert pool.stats().physical == 10 << 20 or pool.stats().physical == 8 << 20


@pytest.mark.parametrize("guard", ["trap", "zero"])
def test_ranges_need_not_begin_at_a_multiple_of_the_chunk(guard):
    """The driver aligns them to its granularity; chunks may be larger."""
    driver = FakeDriver()
    chunk = 5 * GRANULARITY
    with Pool(CudaBackend(chunk, guard, driver=driver), budget=64 * chunk) as pool:
        ranges = [pool.reserve(16 * chunk) for _ in range(6)]
        assert any(a.address % chunk for a in ranges)
        for a in ranges:
            a.extend(6 * chunk)
            a.tensor((6 * chunk,), torch.uint8).fill_(1)
            b = pool.reserve(16 * chunk)
            b.share(a, 4 * chunk)
            b.writable(chunk, 3 * chunk)
            b.tensor((4 * chunk,), torch.uint8)[chunk : 2 * chunk].fill_(2)
            assert a.tensor((6 * chunk,), torch.uint8).all()
            b.free()
            a.trim(2 * chunk)
            assert a.tensor((2 * chunk,), torch.uint8).sum() == 2 * chunk
    assert driver.live in (0, chunk)
