"""What one pool does touches no other: not another pool's chunks, not the file that took a closed one's place, not the
parent's memory from a forked child."""

import os
import threading
import traceback

import pytest
import torch
from fake_driver import FakeDriver
from memory_pools import BACKENDS, CHUNK, open_pool

from superscaler.errors import SuperscalerError, UsageError, UseAfterFree
from superscaler.runtime.memory import Arena, Pool, live_table

GIB = 1 << 30


def filled(pool, chunks=4, value=9):
    vtensor = pool.reserve(GIB)
    vtensor.extend(chunks * CHUNK)
    view = vtensor.tensor((chunks * CHUNK,), torch.uint8)
    view.fill_(value)
    return vtensor, view


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_of_another_pool_are_not_shared(backend):
    with open_pool(backend, name="one") as one, open_pool(backend, name="two") as two:
        a, _ = filled(one)
        b, view = filled(two)
        held = a.hold(0, CHUNK)
        for share in (lambda: b.share(a, CHUNK), lambda: b.share(held, CHUNK), lambda: b.share_chunks([held])):
            with pytest.raises(UsageError, match="those of pool 'one'"):
                share()
        assert b.size == 4 * CHUNK
        assert bool((view == 9).all())


@pytest.mark.parametrize("how", ["free", "drop"])
def test_chunks_held_of_a_closed_pool_are_nobodys(how):
    """Its file is closed, and the next pool's may have the same number."""
    first = open_pool("host")
    held = filled(first)[0].hold(0, 4 * CHUNK)
    first.close()
    with open_pool("host") as second:
        _, view = filled(second)
        if how == "free":
            held.free()
        else:
            del held
        assert bool((view == 9).all())


def test_chunks_held_go_back_to_the_driver_with_the_pool():
    driver = FakeDriver()
    pool = open_pool("cuda", seam=driver)
    held = filled(pool)[0].hold(0, 2 * CHUNK)
    pool.close()
    assert driver.live == 0
    held.free()


def in_a_child(act):
    """What a forked child says to ``act``: its exit code is 0 if that ends without an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_forked_child_changes_nothing_of_its_parents(lazy):
    with open_pool("host", lazy=lazy) as pool:
        vtensor, view = filled(pool)
        arena = Arena(pool, 4 * CHUNK)
        arena.tensor(0, (CHUNK,), torch.uint8).fill_(5)
        idle = arena.tensor(CHUNK, (CHUNK,), torch.uint8).fill_(7)
        arena.release(CHUNK, CHUNK)
        other, _ = filled(pool)
        held = other.hold(0, CHUNK)
        if lazy:
            other.free()  # may wait to be given back: by the parent alone

        def refused(act):
            with pytest.raises(UseAfterFree, match="a forked child has no part in it"):
                act()

        def child():
            for act in (
                lambda: pool.reserve(CHUNK), lambda: vtensor.extend(1), lambda: vtensor.extend_ahead(CHUNK),
                lambda: vtensor.trim(0), vtensor.free, lambda: vtensor.tensor((1,), torch.uint8),
                lambda: vtensor.hold(0, 1), lambda: vtensor.writable(0, 1), lambda: arena.acquire(CHUNK, CHUNK),
                lambda: arena.release(0, CHUNK), arena.trim, arena.free,
                lambda: arena.reclaim(CHUNK),
            ):  # fmt: skip
                refused(act)
            held.free()
            pool.settle()
            pool.stats()
            pool.owners()
            pool.close()
            own, seen = filled(open_pool("host"), value=3)
            assert bool((seen == 3).all())
            own.free()

        assert in_a_child(child) == 0
        pool.settle()
        assert bool((view == 9).all())
        assert bool((arena.tensor(0, (CHUNK,), torch.uint8) == 5).all())
        assert bool((idle == 7).all())
        assert pool.stats().mapped == (6 if lazy else 10) * CHUNK
        held.free()


def test_a_child_forked_while_a_thread_is_inside_the_pool_does_not_hang():
    with open_pool("host") as pool:
        vtensor, _ = filled(pool)
        inside, go_on = threading.Event(), threading.Event()

        def hold():
            with pool.space.lock:
                inside.set()
                go_on.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        child = in_a_child(lambda: (pool.stats(), pool.settle(), pool.close()))
        go_on.set()
        thread.join()
        assert child == 0
        vtensor.extend(CHUNK)


def test_two_processes_with_one_pool_name():
    with open_pool("host", name="same") as pool:
        _, view = filled(pool)

        def child():
            with open_pool("host", name="same") as other:
                _, seen = filled(other, chunks=2, value=3)
                rows = [row for row in live_table() if row.pool == "same"]
                assert sorted((row.pid == os.getpid(), row.mapped) for row in rows) == [
                    (False, 4 * CHUNK), (True, 2 * CHUNK),
                ]  # fmt: skip
                assert bool((seen == 3).all())

        assert in_a_child(child) == 0
        assert bool((view == 9).all())
        assert len([row for row in live_table() if row.pool == "same"]) == 1


@pytest.mark.parametrize("number", [1.5, "4096", None])
def test_what_cannot_count_bytes_is_refused_by_name(number):
    with open_pool("host") as pool:
        vtensor, view = filled(pool)
        for act in (
            lambda: pool.reserve(number), lambda: vtensor.extend(number), lambda: vtensor.trim(number),
            lambda: vtensor.writable(number, CHUNK), lambda: vtensor.hold(0, number),
            lambda: vtensor.share(vtensor, CHUNK, number), lambda: vtensor.extend_ahead(number),
            lambda: Pool("host", budget=number), lambda: Pool("host", chunk=number),
        ):  # fmt: skip
            with pytest.raises(UsageError, match="whole number"):
                act()
        assert pool.stats().committed == vtensor.size == 4 * CHUNK
        assert bool((view == 9).all())


@pytest.mark.parametrize(
    ("shape", "dtype"), [(4, torch.uint8), ((4,), torch.quint8), ((4,), "float32"), ((4,), None), (("a",), torch.uint8)]
)
def test_what_is_no_shape_or_dtype_is_refused(shape, dtype):
    with open_pool("host") as pool:
        vtensor, arena = filled(pool)[0], Arena(pool, CHUNK)
        for act in (vtensor.tensor, lambda *what: arena.tensor(0, *what), lambda *what: arena.view(0, *what)):
            with pytest.raises(UsageError, match="sizes"):
                act(shape, dtype)
        assert not arena.in_use


@pytest.mark.parametrize(
    "act",
    [
        lambda pool, vtensor: vtensor.share(None, 1),
        lambda pool, vtensor: vtensor.share(torch.zeros(1), 1),
        lambda pool, vtensor: vtensor.share_chunks([None]),
        lambda pool, vtensor: pool.reserve(CHUNK, owner=3),
        lambda pool, vtensor: Arena(pool, CHUNK, owner=None),
        lambda pool, vtensor: Pool("host", name=3),
        lambda pool, vtensor: Pool("host", guard=None),
        lambda pool, vtensor: Pool(3),
    ],
)
def test_what_is_no_vtensor_name_or_guard_is_refused(act):
    with open_pool("host") as pool:
        vtensor, view = filled(pool)
        with pytest.raises(UsageError):
            act(pool, vtensor)
        assert pool.stats().committed == vtensor.size == 4 * CHUNK
        assert bool((view == 9).all())


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "ü\n", ""])
def test_a_pool_may_have_any_name(name):
    with Pool("host", budget=CHUNK, chunk=CHUNK, name=name) as pool:
        pool.reserve(CHUNK).extend(1)
        assert pool.owners()[0].pool == name


def test_more_pools_than_file_descriptors_is_an_error_that_passes():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    pools = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        with pytest.raises(SuperscalerError, match="cannot create a memfd"):
            pools.extend(Pool("host", budget=CHUNK, chunk=CHUNK) for _ in range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for pool in pools:
            pool.close()
    Pool("host", budget=CHUNK, chunk=CHUNK).close()
