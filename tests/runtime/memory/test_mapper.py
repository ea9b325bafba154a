"""Off the critical path: mapping ahead, lazy release, counters; and no deadlock."""

import contextlib
import gc
import sys
import threading
import time

import pytest
import torch
from memory_pools import BACKENDS, CHUNK, open_pool

from superscaler.errors import UseAfterFree

GIB = 1 << 30


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the background thread did not get there"
        time.sleep(0.001)


def mappers() -> int:
    return sum(thread.name == "mapper" for thread in threading.enumerate())


@contextlib.contextmanager
def switching_often():
    """The interpreter switches threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_mapped_ahead_is_found_mapped(backend):
    with open_pool(backend) as pool:
        a = pool.reserve(GIB)
        a.extend_ahead(8 * CHUNK)
        wait_for(lambda: pool.stats().ahead_maps == 1)
        assert (a.size, a.mapped) == (0, 0), "not in use before it is extended"
        a.extend(6 * CHUNK)
        assert pool.stats().sync_maps == 0
        assert not a.tensor((6 * CHUNK,), torch.uint8).any()
        a.extend(4 * CHUNK)
        stats = pool.stats()
        assert stats.sync_maps == 1
        assert 0 < stats.sync_longest <= stats.sync_seconds


def test_ahead_takes_nothing_from_anybody_and_is_given_back_when_needed():
    with open_pool("host", chunks=8) as pool:
        a, b = pool.reserve(GIB), pool.reserve(GIB)
        a.extend_ahead(6 * CHUNK)
        wait_for(lambda: pool.stats().committed == 6 * CHUNK)
        b.extend_ahead(4 * CHUNK)  # more than there is: nothing happens
        b.extend(8 * CHUNK)
        assert pool.stats().committed == 8 * CHUNK
        assert pool.stats().mapped == 8 * CHUNK
        b.free()
        a.extend(2 * CHUNK)
        assert a.mapped == 2 * CHUNK


@pytest.mark.parametrize("backend", BACKENDS)
def test_lazy_release_gives_back_in_the_background(backend):
    with open_pool(backend, lazy=True) as pool:
        a = pool.reserve(GIB)
        a.extend(32 * CHUNK)
        a.tensor((32 * CHUNK,), torch.uint8).fill_(1)
        a.trim(8 * CHUNK)
        assert a.mapped == 8 * CHUNK
        wait_for(lambda: pool.stats().committed == 8 * CHUNK)
        assert pool.stats().physical == 8 * CHUNK
        a.extend(CHUNK)
        assert not a.tensor((CHUNK,), torch.uint8, offset=8 * CHUNK).any()
        a.free()
        wait_for(lambda: pool.stats().physical == 0)


def test_a_lazy_pool_settles_at_once_when_memory_is_short():
    with open_pool("host", chunks=8, lazy=True) as pool:
        for _ in range(200):
            a = pool.reserve(GIB)
            a.extend(8 * CHUNK)
            a.tensor((8 * CHUNK,), torch.uint8)[::CHUNK] = 1
            a.free()
        pool.settle()
        assert pool.stats().physical == 0


def test_the_thread_ends_with_its_pool():
    before = mappers()
    with open_pool("host") as pool:
        pool.reserve(GIB).extend_ahead(CHUNK)
        assert mappers() == before + 1
    assert mappers() == before
    pool = open_pool("host")
    pool.reserve(GIB).extend_ahead(CHUNK)
    del pool
    gc.collect()
    wait_for(lambda: mappers() == before)


def test_threads_that_ask_at_once_share_one_mapper():
    # A second one would take the word that ends the first, and closing the pool would wait for ever.
    def ask(pool) -> None:
        region = pool.reserve(GIB)
        ready.append(region)
        while len(ready) < 4:  # a barrier would let them go one by one
            pass
        region.extend_ahead(CHUNK)

    before = mappers()
    with switching_often():
        for _ in range(15):
            with open_pool("host") as pool:
                ready = []
                threads = [threading.Thread(target=ask, args=(pool,), daemon=True) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(60)
                assert mappers() == before + 1


def test_a_closed_pool_starts_no_mapper():
    pool = open_pool("host", lazy=True)
    region = pool.reserve(GIB)
    pool.close()
    before = mappers()
    with pytest.raises(UseAfterFree):
        region.extend_ahead(CHUNK)
    pool.space.mapper.stop()
    assert mappers() == before


def test_finalizers_threads_and_the_background_cannot_deadlock():
    # Collections run everywhere, views die in all of them.
    threshold = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        with switching_often(), open_pool("host", chunks=4096, lazy=True) as pool:
            threads = [threading.Thread(target=churn, args=(pool, seed), daemon=True) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
                assert not thread.is_alive(), "deadlock"
            for _ in range(200):
                # Where another thread collects at this moment, collecting here does nothing.
                gc.collect()
                pool.settle()
                if not pool.stats().mapped:
                    break
                time.sleep(0.05)
            assert pool.stats().committed == pool.stats().mapped == 0
    finally:
        gc.set_threshold(*threshold)


def churn(pool, seed: int) -> None:
    for step in range(150):
        vtensor = pool.reserve(GIB)
        vtensor.extend_ahead(3 * CHUNK)
        vtensor.extend(2 * CHUNK)
        cycle = [vtensor.tensor((CHUNK,), torch.uint8)]
        cycle.append(cycle)  # only a collection can free this view
        if (step + seed) % 3 == 0:
            vtensor.trim(0)
        elif (step + seed) % 3 == 1:
            vtensor.free()
