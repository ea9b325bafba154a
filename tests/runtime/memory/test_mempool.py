"""PyTorch's segments in a pool: the callbacks, called as torch calls them."""

import ctypes
import gc
import importlib
import weakref

import pytest
import torch
from fake_driver import FakeDriver
from memory_pools import CHUNK, open_pool

from superscaler.errors import BackendUnavailable
from superscaler.runtime.memory.mempool import Segments, open_memory_pool


def test_segments_come_from_the_pool_and_go_back():
    driver = FakeDriver()
    with open_pool("cuda", chunks=8, seam=driver) as pool:
        segments = Segments(pool)
        address = segments.allocate_callback(5 * CHUNK, 0, None)
        ctypes.memset(address, 1, 5 * CHUNK)
        assert segments.mapped == pool.stats().committed == 5 * CHUNK
        assert [row.owner for row in pool.owners()] == ["activations"]
        segments.free_callback(address, 5 * CHUNK, 0, None)
        assert segments.mapped == pool.stats().committed == pool.stats().reserved == 0


def test_a_full_pool_is_no_address():
    with open_pool("cuda", chunks=4) as pool:
        segments = Segments(pool)
        assert segments.allocate_callback(5 * CHUNK, 0, None) is None
        first = segments.allocate_callback(4 * CHUNK, 0, None)
        assert first
        segments.free_callback(first, 4 * CHUNK, 0, None)
        assert segments.allocate_callback(4 * CHUNK, 0, None)


def test_nothing_is_collected_while_torch_allocates(monkeypatch):
    with open_pool("cuda") as pool:
        segments, seen = Segments(pool), []
        reserve = pool.reserve
        monkeypatch.setattr(pool, "reserve", lambda *a, **k: seen.append(gc.isenabled()) or reserve(*a, **k))
        assert segments.allocate_callback(CHUNK, 0, None)
        assert segments.allocate_callback(1 << 40, 0, None) is None
    assert seen == [False, False]
    assert gc.isenabled()


def test_an_unknown_or_empty_address_is_ignored():
    with open_pool("cuda") as pool:
        segments = Segments(pool)
        segments.free_callback(None, 0, 0, None)
        segments.free_callback(4096, 4096, 0, None)


def test_torch_may_call_when_everything_else_is_gone(monkeypatch):
    class Allocator:
        pass

    def make(allocate: int, free: int) -> Allocator:
        made.append(weakref.ref(allocator := Allocator()))
        return allocator

    made: list[weakref.ref] = []
    monkeypatch.setattr(importlib.import_module("torch._C"), "_cuda_customAllocator", make, raising=False)
    monkeypatch.setattr(torch.cuda, "MemPool", lambda allocator: None)  # as before torch 2.11: keeps nothing alive
    with open_pool("cuda") as pool:
        open_memory_pool(pool)
    gc.collect()
    assert made[0]() is not None


def test_a_pool_on_the_host_cannot_hold_them():
    with open_pool("host") as pool, pytest.raises(BackendUnavailable, match="'host'"):
        open_memory_pool(pool)
