"""What a vTensor promises, on every backend."""

import gc

import pytest
import torch
from memory_pools import BACKENDS, CHUNK, open_pool

from superscaler.errors import OutOfMemory, UsageError, UseAfterFree, VirtualMemoryError
from superscaler.runtime.memory import Pool

GIB = 1 << 30


@pytest.fixture(params=BACKENDS)
def pool(request):
    with open_pool(request.param) as pool:
        yield pool


def filled(vtensor, nbytes, value):
    vtensor.extend(nbytes)
    vtensor.tensor((nbytes,), torch.uint8).fill_(value)
    return vtensor


def content(vtensor, nbytes):
    return vtensor.tensor((nbytes,), torch.uint8)


def test_the_surface_as_the_issue_writes_it():
    with Pool(backend="host", budget=2 << 30, chunk=2 << 20) as pool:
        a = pool.reserve(1 << 40)
        a.extend(64 << 20)
        x = a.tensor((4096, 8, 128), torch.float16)
        x.fill_(2)
        b = pool.reserve(1 << 40)
        b.share(a, 32 << 20)
        assert torch.equal(b.tensor(x.shape, x.dtype), x)
        a.trim(16 << 20)
        a.free()
        stats = pool.stats()
        assert (stats.mapped, stats.shared, stats.peak) == (32 << 20, 0, 64 << 20)
        assert stats.physical == 8 << 20
        assert stats.system_calls < 20


def test_reserving_costs_no_memory(pool):
    a = pool.reserve(GIB)
    assert (a.reserved, a.mapped) == (GIB, 0)
    assert pool.stats().mapped == pool.stats().physical == 0
    assert pool.stats().reserved == GIB


def test_fresh_memory_is_zero_and_its_address_never_changes(pool):
    a = pool.reserve(GIB)
    a.extend(CHUNK)
    first = content(a, CHUNK)
    assert not first.any()
    first.fill_(7)
    a.extend(3 * CHUNK)
    whole = content(a, 4 * CHUNK)
    assert whole.data_ptr() == first.data_ptr() == a.address
    assert (whole[:CHUNK] == 7).all()
    assert not whole[CHUNK:].any()


def test_sizes_are_bytes_and_memory_is_chunks(pool):
    a = pool.reserve(GIB)
    for _ in range(3):
        a.extend(1000)
    assert (a.size, a.mapped) == (3000, CHUNK)
    a.trim(10)
    assert (a.size, a.mapped) == (10, CHUNK)
    a.trim(0)
    assert (a.size, a.mapped) == (0, 0)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn]
)
def test_views_have_any_dtype_shape_and_offset(pool, dtype):
    a = pool.reserve(GIB)
    a.extend(CHUNK)
    view = a.tensor((3, 5), dtype, offset=1024)
    assert view.shape == (3, 5)
    assert view.dtype == dtype
    assert view.data_ptr() == a.address + 1024
    assert a.tensor((0, 4), dtype).shape == (0, 4)
    assert a.tensor((), dtype).shape == ()


def test_a_view_beyond_what_is_mapped_is_refused_and_named(pool):
    a = pool.reserve(GIB, owner="kv cache")
    a.extend(CHUNK)
    with pytest.raises(VirtualMemoryError, match=r"kv cache#1: a view beyond what is mapped"):
        a.tensor((CHUNK + 1,), torch.uint8)
    with pytest.raises(VirtualMemoryError, match="beyond"):
        a.tensor((1,), torch.int32, offset=CHUNK)
    with pytest.raises(RuntimeError):  # nor can torch itself step out of it
        a.tensor((CHUNK,), torch.uint8).as_strided((CHUNK + 1,), (1,))


def test_bad_parameters_are_usage_errors(pool):
    a = pool.reserve(GIB)
    a.extend(CHUNK)
    for call in (
        lambda: pool.reserve(0),
        lambda: a.extend(-1),
        lambda: a.trim(2 * CHUNK),
        lambda: a.tensor((1,), torch.int32, offset=2),
        lambda: a.tensor((-1,), torch.int32),
        lambda: a.tensor((1,), torch.int32, offset=-4),
        *(lambda odd=odd: a.tensor((1,), torch.int32, offset=odd) for odd in (None, "x", 1.5, [1])),
        *(lambda odd=odd: a.tensor((1,), odd) for odd in (None, "x", torch.tensor(3))),
    ):
        with pytest.raises(UsageError) as told:
            call()
        assert told.value.hint


def test_sizes_may_be_whole_numbers_of_any_type(pool):
    """What keeps them are plain numbers: no tensor stays in the books."""
    size = torch.tensor(2 * CHUNK)
    a, b = pool.reserve(size), pool.reserve(size)
    a.extend(size)
    b.share(a, torch.tensor(CHUNK), torch.tensor(CHUNK))
    a.writable(torch.tensor(0), size)
    a.trim(torch.tensor(CHUNK))
    assert a.tensor((torch.tensor(4),), torch.uint8, offset=torch.tensor(8)).tolist() == [0, 0, 0, 0]
    stats = pool.stats()
    assert {type(n) for n in (a.size, b.size, a.reserved, stats.mapped, stats.committed, stats.reserved)} == {int}


def test_running_out_leaves_everyone_as_they_were():
    for backend in BACKENDS:
        with open_pool(backend, chunks=4) as pool:
            a, b = filled(pool.reserve(GIB, "first"), 2 * CHUNK, 1), pool.reserve(GIB, "second")
            b.extend(CHUNK)
            with pytest.raises(OutOfMemory, match="second#2"):
                b.extend(2 * CHUNK)
            assert (b.size, b.mapped) == (CHUNK, CHUNK)
            assert (content(a, 2 * CHUNK) == 1).all()
            b.extend(CHUNK)
            assert pool.stats().committed == 4 * CHUNK


def test_a_range_that_is_full_says_so(pool):
    a = pool.reserve(2 * CHUNK)
    a.extend(2 * CHUNK)
    with pytest.raises(OutOfMemory, match="address range is full"):
        a.extend(1)
    assert a.size == 2 * CHUNK


def test_trim_and_free_give_memory_back_at_once(pool):
    a = filled(pool.reserve(GIB), 8 * CHUNK, 1)
    assert pool.stats().physical == 8 * CHUNK
    a.trim(3 * CHUNK)
    assert pool.stats().physical == pool.stats().committed == 3 * CHUNK
    a.free()
    assert pool.stats().physical == pool.stats().mapped == 0


def test_memory_that_comes_back_shows_nothing_of_what_was_in_it(pool):
    a = filled(pool.reserve(GIB), 8 * CHUNK, 0xEE)
    a.trim(0)
    a.extend(8 * CHUNK)
    assert not content(a, 8 * CHUNK).any()
    content(a, 8 * CHUNK).fill_(0xEE)
    a.free()
    b = pool.reserve(GIB)
    b.extend(8 * CHUNK)
    assert not content(b, 8 * CHUNK).any()


def test_sharing_maps_the_same_memory(pool):
    a = filled(pool.reserve(GIB), 4 * CHUNK, 5)
    b = pool.reserve(GIB)
    b.share(a, 3 * CHUNK)
    assert (b.size, b.mapped) == (3 * CHUNK, 3 * CHUNK)
    assert (content(b, 3 * CHUNK) == 5).all()
    stats = pool.stats()
    assert (stats.mapped, stats.committed, stats.shared) == (7 * CHUNK, 4 * CHUNK, 3 * CHUNK)
    assert not a.is_writable(0, 3 * CHUNK)
    assert not b.is_writable(0, 3 * CHUNK)
    assert a.is_writable(3 * CHUNK, 4 * CHUNK)


def test_freeing_one_side_leaves_the_other_its_memory(pool):
    a = filled(pool.reserve(GIB), 4 * CHUNK, 5)
    b, c = pool.reserve(GIB), pool.reserve(GIB)
    b.share(a, 4 * CHUNK)
    c.share(b, 4 * CHUNK)
    a.free()
    assert (content(b, 4 * CHUNK) == 5).all()
    b.trim(CHUNK)
    assert (content(c, 4 * CHUNK) == 5).all()
    assert pool.stats().shared == CHUNK
    b.free()
    c.writable(0, 4 * CHUNK)
    assert pool.stats().calls.get("pwrite", 0) == pool.stats().calls.get("copy", 0) == 0  # nobody to copy for
    c.free()
    assert pool.stats().committed == 0


def test_a_write_after_copy_on_write_is_seen_by_nobody_else(pool):
    a = filled(pool.reserve(GIB), 3 * CHUNK, 5)
    b = pool.reserve(GIB)
    b.share(a, 3 * CHUNK)
    b.writable(CHUNK, CHUNK + 1)
    content(b, 3 * CHUNK)[CHUNK : 2 * CHUNK] = 6
    assert (content(a, 3 * CHUNK) == 5).all()
    assert (content(b, 3 * CHUNK)[CHUNK : 2 * CHUNK] == 6).all()
    assert pool.stats().committed == 4 * CHUNK
    a.writable(0, 3 * CHUNK)
    content(a, 3 * CHUNK).fill_(9)
    assert content(b, 3 * CHUNK)[::CHUNK].tolist() == [5, 6, 5]


def test_copy_on_write_without_memory_changes_nothing():
    for backend in BACKENDS:
        with open_pool(backend, chunks=3) as pool:
            a, b = filled(pool.reserve(GIB), 2 * CHUNK, 5), pool.reserve(GIB)
            b.share(a, 2 * CHUNK)
            with pytest.raises(OutOfMemory):
                b.writable(0, 2 * CHUNK)
            assert not b.is_writable(0, CHUNK)
            assert (content(b, 2 * CHUNK) == 5).all()
            b.writable(0, CHUNK)
            assert b.is_writable(0, CHUNK)


def test_a_chunk_that_left_home_is_not_handed_out_again(pool):
    # b keeps what a trims; a grows again at the same place, and must get other memory.
    a = filled(pool.reserve(GIB), 2 * CHUNK, 5)
    b = pool.reserve(GIB)
    b.share(a, 2 * CHUNK)
    a.trim(0)
    filled(a, 2 * CHUNK, 8)
    assert (content(b, 2 * CHUNK) == 5).all()
    assert (content(a, 2 * CHUNK) == 8).all()
    b.free()
    a.free()
    assert pool.stats().committed == 0


def test_sharing_twice_appends(pool):
    a, b = filled(pool.reserve(GIB), 2 * CHUNK, 1), filled(pool.reserve(GIB), 2 * CHUNK, 2)
    c = pool.reserve(GIB)
    c.share(b, CHUNK)
    c.share(a, CHUNK, start=CHUNK)
    c.extend(CHUNK)
    assert content(c, 3 * CHUNK)[::CHUNK].tolist() == [2, 1, 0]


def test_what_cannot_be_shared_is_refused(pool):
    a, b = filled(pool.reserve(GIB), CHUNK, 1), pool.reserve(GIB)
    with pytest.raises(VirtualMemoryError, match="not all of it is mapped"):
        b.share(a, CHUNK + 1)
    b.extend(5)
    with pytest.raises(UsageError, match="multiples"):
        b.share(a, CHUNK)


def test_chunks_can_be_held_without_addresses(pool):
    a = filled(pool.reserve(GIB), 3 * CHUNK, 4)
    held = a.hold(CHUNK, 3 * CHUNK)
    a.free()
    assert pool.stats().committed == held.size == 2 * CHUNK
    b = pool.reserve(GIB)
    b.share(held, 2 * CHUNK)
    assert (content(b, 2 * CHUNK) == 4).all()
    held.free()
    assert pool.stats().shared == 0
    b.free()
    assert pool.stats().committed == 0


def test_dropping_held_chunks_frees_them(pool):
    held = filled(pool.reserve(GIB), CHUNK, 4).hold(0, CHUNK)
    assert pool.stats().committed == CHUNK
    del held
    gc.collect()
    assert pool.stats().committed == 0


def test_use_after_free_is_named(pool):
    a = filled(pool.reserve(GIB, "weights"), CHUNK, 1)
    a.free()
    for use in (
        lambda: a.extend(1),
        lambda: a.tensor((1,), torch.int8),
        lambda: a.trim(0),
        a.free,
        lambda: a.writable(0, 0),
    ):
        with pytest.raises(UseAfterFree, match="weights#1"):
            use()
    with pytest.raises(UseAfterFree, match="weights#1"):
        pool.reserve(GIB).share(a, CHUNK)


def test_a_closed_pool_is_a_use_after_free(pool):
    a = filled(pool.reserve(GIB), CHUNK, 1)
    pool.close()
    pool.close()
    with pytest.raises(UseAfterFree, match="closed"):
        a.extend(1)
    with pytest.raises(UseAfterFree, match="closed"):
        pool.reserve(1)
    assert pool.stats().physical == 0


def test_a_view_keeps_its_memory_when_the_vtensor_is_dropped(pool):
    view = content(filled(pool.reserve(GIB), 2 * CHUNK, 3), 2 * CHUNK)
    part = view[CHUNK:]
    del view
    gc.collect()
    assert (part == 3).all()
    assert pool.stats().mapped == 2 * CHUNK
    del part
    gc.collect()
    assert pool.stats().reserved == pool.stats().mapped == pool.stats().committed == 0


def test_a_dropped_vtensor_gives_everything_back(pool):
    filled(pool.reserve(GIB), 2 * CHUNK, 3)
    gc.collect()
    assert pool.stats().reserved == pool.stats().physical == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_guard_views_of_freed_memory_read_zeros(backend):
    with open_pool(backend, guard="zero") as pool:
        a = filled(pool.reserve(GIB), 4 * CHUNK, 3)
        view = content(a, 4 * CHUNK)
        a.trim(CHUNK)
        assert view[::CHUNK].tolist() == [3, 0, 0, 0]
        a.extend(CHUNK)
        content(a, 2 * CHUNK)[CHUNK:] = 9
        assert view[::CHUNK].tolist() == [3, 9, 0, 0]
        a.free()
        assert not view.any()
    assert not view.any()


def test_growth_beside_growth_stays_one_mapping_each():
    before = mappings()
    with open_pool("host", chunks=4096) as pool:
        ranges = [pool.reserve(GIB) for _ in range(8)]
        for _ in range(100):
            for vtensor in ranges:
                vtensor.extend(CHUNK)
        # Per range: what is mapped and the guard behind it; and some slack for what else the process does.
        assert mappings() - before < 2 * len(ranges) + 12
        assert pool.stats().calls["mprotect"] == 800


@pytest.mark.parametrize("size", [CHUNK, 3 << 20, GIB])
def test_ranges_with_nothing_in_them_take_no_mappings(size):
    before = mappings()
    with open_pool("host", chunks=4096) as pool:
        ranges = [pool.reserve(size) for _ in range(300)]
        assert mappings() - before < 30
        for vtensor in ranges:
            vtensor.extend(CHUNK)
        for vtensor in ranges:
            vtensor.trim(0)
        assert mappings() - before < 30


def mappings():
    with open("/proc/self/maps") as lines:
        return sum(1 for _ in lines)
