"""Arenas: values at planned offsets, mapped by their lifetimes."""

import gc
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_pools import BACKENDS, CHUNK, open_pool

from superscaler.errors import OutOfMemory, UsageError, UseAfterFree, VirtualMemoryError
from superscaler.runtime.memory import Arena


@pytest.fixture(params=BACKENDS)
def pool(request):
    with open_pool(request.param) as pool:
        yield pool


def test_values_are_where_the_plan_says(pool):
    arena = Arena(pool, 8 * CHUNK)
    a = arena.tensor(0, (16, 4), torch.float32)
    b = arena.tensor(3 * CHUNK + 256, (10,), torch.bfloat16)
    assert a.data_ptr() == arena.address
    assert b.data_ptr() == arena.address + 3 * CHUNK + 256
    a.fill_(1)
    b.fill_(2)
    assert (a == 1).all()
    assert arena.in_use == arena.mapped == 2 * CHUNK
    assert arena.peak == 3 * CHUNK + 256 + 20


def test_a_chunk_is_in_use_as_long_as_any_value_touches_it(pool):
    arena = Arena(pool, 4 * CHUNK, keep=False)
    arena.acquire(0, CHUNK + 10)
    arena.acquire(CHUNK + 10, CHUNK)
    arena.release(0, CHUNK + 10)
    assert arena.in_use == arena.mapped == 2 * CHUNK
    arena.release(CHUNK + 10, CHUNK)
    assert arena.in_use == arena.mapped == pool.stats().committed == 0
    assert arena.peak_in_use == 3 * CHUNK


def test_kept_chunks_cost_nothing_the_second_time(pool):
    arena = Arena(pool, 4 * CHUNK)
    first = arena.tensor(CHUNK, (CHUNK,), torch.uint8)
    arena.release(CHUNK, CHUNK)
    calls = pool.stats().system_calls
    again = arena.tensor(CHUNK, (CHUNK,), torch.uint8)
    assert again.data_ptr() == first.data_ptr()
    assert pool.stats().system_calls == calls


def test_populating_backs_what_is_mapped(pool):
    arena = Arena(pool, 4 * CHUNK)
    a = arena.tensor(0, (CHUNK,), torch.uint8)
    arena.acquire(2 * CHUNK, CHUNK)
    a.fill_(3)
    arena.populate()
    assert pool.stats().physical == 2 * CHUNK
    assert (a == 3).all()


def test_idle_chunks_go_to_whoever_needs_memory():
    with open_pool("host", chunks=6) as pool:
        arena, kv = Arena(pool, 6 * CHUNK), pool.reserve(1 << 30, "kv")
        arena.acquire(0, 4 * CHUNK)
        arena.release(CHUNK, 3 * CHUNK)
        kv.extend(5 * CHUNK)
        assert (arena.mapped, arena.in_use) == (CHUNK, CHUNK)
        with pytest.raises(OutOfMemory, match="arena#1"):
            arena.acquire(CHUNK, CHUNK)
        assert arena.in_use == CHUNK
        kv.trim(0)
        arena.acquire(CHUNK, 3 * CHUNK)
        assert arena.mapped == 4 * CHUNK


def test_what_a_value_just_took_is_not_reclaimed_by_another_thread():
    with open_pool("host", chunks=8) as pool:
        arena = Arena(pool, 4 * CHUNK)
        other = threading.Thread(target=arena.reclaim, args=(4 * CHUNK,))

        class Watched(dict[int, int]):
            def __contains__(self, index: object) -> bool:
                found = super().__contains__(index)
                if other.ident is None:
                    other.start()
                    other.join(0.1)
                return found

        arena.acquire(0, 4 * CHUNK)
        arena.release(0, 4 * CHUNK)
        arena._region.chunks = Watched(arena._region.chunks)
        view = arena.tensor(0, (4 * CHUNK,), torch.uint8)
        other.join()
        assert arena.mapped == arena.in_use == 4 * CHUNK
        view.fill_(1)


def test_a_dropped_arena_gives_everything_back(pool):
    arena = Arena(pool, 4 * CHUNK)
    arena.acquire(0, CHUNK)
    del arena
    gc.collect()
    assert pool.stats().committed == pool.stats().reserved == 0


def test_misuse_is_named(pool):
    arena = Arena(pool, 2 * CHUNK, owner="worker 3")
    with pytest.raises(VirtualMemoryError, match=r"worker 3#1: bytes .* outside"):
        arena.acquire(CHUNK, CHUNK + 1)
    with pytest.raises(VirtualMemoryError, match="beyond what is mapped"):
        arena.view(0, (1,), torch.uint8)
    with pytest.raises(UseAfterFree, match="released already"):
        arena.release(0, 1)
    arena.acquire(0, 8)
    with pytest.raises(UsageError, match="not aligned"):
        arena.view(2, (1,), torch.float32)
    arena.free()
    with pytest.raises(UseAfterFree, match="worker 3#1 was freed"):
        arena.acquire(0, 1)


LIVES = st.lists(st.tuples(st.integers(0, 7 * CHUNK), st.integers(1, CHUNK)), max_size=20)


@given(lives=LIVES, order=st.randoms(use_true_random=False))
def test_what_is_mapped_is_what_live_values_touch(lives, order):
    with open_pool("host") as pool:
        arena = Arena(pool, 8 * CHUNK, keep=False)
        live: list[tuple[int, int]] = []
        for life in lives:
            arena.acquire(*life)
            live.append(life)
            if order.random() < 0.5:
                arena.release(*live.pop(order.randrange(len(live))))
            touched = {c for offset, size in live for c in range(offset // CHUNK, -(-(offset + size) // CHUNK))}
            assert arena.mapped == arena.in_use == len(touched) * CHUNK == pool.stats().committed
        arena.trim()
        assert arena.mapped == arena.in_use
