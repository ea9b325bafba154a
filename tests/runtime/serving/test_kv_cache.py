"""KV caches: sequences of unequal length, forks, cached prefixes, eviction; all keys and values are checked."""

import gc
import itertools
import random
import sys
import threading

import pytest
import torch
from fake_driver import FakeDriver
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_pools import CHUNK, open_pool

from superscaler.errors import OutOfMemory, UsageError, UseAfterFree, VirtualMemoryError
from superscaler.runtime.memory import Arena, Pool, VTensor
from superscaler.runtime.serving.kv_cache import KVCache
from superscaler.runtime.serving.kv_layout import KVLayout

PAGE = 4096
GIB = 1 << 30
DENSE = KVLayout(layers=2, heads=2, dim=16, dtype=torch.float32)  # 32 tokens per page
UNEVEN = KVLayout(layers=4, heads=3, dim=10, dtype=torch.float32, layers_per_chunk=2)  # 17.07 tokens per page
WIDE = KVLayout(layers=2, heads=4, dim=160, dtype=torch.float32, layers_per_chunk=2)  # 1.25 pages per token
HUGE = KVLayout(layers=2, heads=4, dim=384, dtype=torch.float32, layers_per_chunk=2)  # 3 pages per token


def open_cache(pages=4096, layout=DENSE, **options):
    return KVCache(Pool("host", budget=pages * PAGE, chunk=PAGE), layout, max_tokens=1024, **options)


def value_of(tokens, position, layer, kind):
    """What this test writes for a token: it depends on all tokens up to it, as keys and values do."""
    return float(hash((tuple(tokens[: position + 1]), layer, kind)) % 65_521)


def write(sequence, begin):
    for layer in range(sequence.cache.layout.layers):
        keys, values = sequence.keys(layer), sequence.values(layer)
        for position in range(begin, sequence.length):
            keys[position] = value_of(sequence.tokens, position, layer, "k")
            values[position] = value_of(sequence.tokens, position, layer, "v")


def check(sequence):
    for layer in range(sequence.cache.layout.layers):
        for kind, view in (("k", sequence.keys(layer)), ("v", sequence.values(layer))):
            expect = [value_of(sequence.tokens, position, layer, kind) for position in range(sequence.length)]
            assert view[:, 0, 0].tolist() == view[:, -1, -1].tolist() == expect


def prefill(cache, tokens):
    sequence = cache.create(tokens)
    begin = sequence.length
    sequence.append(tokens[begin:])
    write(sequence, begin)
    return sequence


@pytest.mark.parametrize("layout", [DENSE, UNEVEN])
def test_sequences_of_unequal_length_grow_apart(layout):
    cache = open_cache(layout=layout)
    sequences = [prefill(cache, list(range(n))) for n in (1, 31, 32, 33, 100)]
    for step in range(40):
        for sequence in sequences:
            sequence.append([1000 + step])
            write(sequence, sequence.length - 1)
    for sequence in sequences:
        check(sequence)


def test_views_are_plain_tensors_over_fixed_addresses():
    cache = open_cache()
    sequence = prefill(cache, [1, 2, 3])
    first = sequence.keys(1)
    assert first.shape == (3, 2, 16)
    assert first.is_contiguous()
    sequence.append(500)
    assert sequence.keys(1).data_ptr() == first.data_ptr() == cache.batch([sequence], 1).keys.item()
    assert sequence.values(0).data_ptr() == cache.batch([sequence], 0).values.item()


def test_layers_of_one_plane_are_strided():
    cache = open_cache(layout=UNEVEN)
    sequence = prefill(cache, [5])
    assert len(sequence.planes) == 4
    assert sequence.keys(1).stride() == (60, 10, 1)
    assert sequence.keys(1).data_ptr() - sequence.keys(0).data_ptr() == 120
    assert cache.batch([sequence], 3).values.item() == sequence.values(3).data_ptr()


def test_a_fork_shares_and_its_tail_is_copied():
    cache = open_cache()
    parent = prefill(cache, list(range(100)))
    before = cache.pool.stats().committed
    child = parent.fork()
    assert cache.pool.stats().committed == before
    for sequence, token in ((child, 7), (parent, 8)):
        sequence.append([token])
        write(sequence, 100)
    check(parent)
    check(child)
    # Both wrote into the chunk of token 100: one of them, in each of four planes, needed a copy.
    assert cache.pool.stats().committed == before + 4 * PAGE
    parent.free(keep=False)
    check(child)


def test_a_fork_at_a_chunks_end_copies_nothing():
    cache = open_cache()
    parent = prefill(cache, list(range(64)))
    child = parent.fork()
    child.append([1])
    write(child, 64)
    assert cache.pool.stats().calls.get("pwrite", 0) == 0
    check(child)


def test_finished_prefixes_are_found_again():
    cache = open_cache()
    tokens = list(range(200))
    prefill(cache, tokens).free()
    assert cache.cached_tokens == 200
    again = cache.create([*tokens, 999])
    assert again.length == 200
    check(again)
    other = cache.create([*tokens[:150], 7, 7, 7])
    assert other.length == 150, "inside of a chunk as well"
    other.append([7, 7, 7])
    write(other, 150)
    check(other)
    check(again)


def test_the_last_token_is_always_left_to_compute():
    cache = open_cache()
    prefill(cache, list(range(64))).free()
    assert cache.create(list(range(64))).length == 63


@pytest.mark.parametrize("layout", [WIDE, HUGE])
def test_tokens_larger_than_a_chunk_are_found_again_as_far_as_they_are_whole(layout):
    cache = open_cache(layout=layout)
    prefill(cache, [1, 2, 3, 4]).free()
    for prompt, common in (([1], 0), ([1, 2, 3, 9], 2), ([1, 2, 3, 4, 5], 3), ([2], 0)):
        sequence = prefill(cache, prompt)
        assert sequence.tokens[:common] == prompt[:common]
        assert cache.pool.stats().shared >= common * layout.row // PAGE * PAGE * layout.planes
        check(sequence)
        sequence.free(keep=False)
    cache.reclaim(1 << 40)
    assert cache.pool.stats().committed == 0


def test_short_matches_inside_a_chunk_are_not_worth_a_copy():
    cache = open_cache(block=16)
    prefill(cache, list(range(64))).free()
    assert cache.create([*range(40), 999, 999]).length == 32
    assert cache.create([*range(48), 999, 999]).length == 48


def test_many_sequences_map_one_prefix():
    cache = open_cache()
    prefix = list(range(256))
    prefill(cache, prefix).free()
    one = cache.pool.stats().committed
    users = [prefill(cache, [*prefix, 1000 + n]) for n in range(20)]
    for user in users:
        check(user)
    assert cache.pool.stats().committed == one + 20 * 4 * PAGE, "the prefix once, and a tail each"


def test_memory_that_is_needed_is_taken_from_the_oldest_prefixes():
    cache = open_cache(pages=64)
    for start in (1000, 2000, 3000):
        prefill(cache, list(range(start, start + 128))).free()  # 16 pages each
    cache.create([*range(1000, 1128), 5]).free(keep=False)  # used again
    big = prefill(cache, list(range(160)))  # 20 pages of 16 that are left
    check(big)
    assert cache.create([*range(1000, 1128), 5]).length == 128
    assert cache.create([*range(3000, 3128), 5]).length == 128
    assert cache.create([*range(2000, 2128), 5]).length == 96, "the oldest lost its last chunk, no more"


def test_what_live_sequences_map_is_not_evicted():
    cache = open_cache(pages=32)
    prefix = list(range(96))
    prefill(cache, prefix).free()
    user = prefill(cache, [*prefix, 1])
    with pytest.raises(OutOfMemory):
        prefill(cache, list(range(5000, 5200)))
    check(user)
    assert cache.create([*prefix, 2]).length == 96
    gc.collect()


@pytest.mark.parametrize("layout", [DENSE, UNEVEN])
@pytest.mark.parametrize("shared", [1, 20, 50, 90])
def test_a_prefix_that_nobody_wrote_behind_can_be_evicted(layout, shared):
    cache = open_cache(layout=layout)
    prompt = list(range(100))
    prefill(cache, prompt).free()
    held = cache.pool.stats().committed
    user = cache.create([*prompt[:shared], -1])
    child = user.fork()
    child.free()
    user.free()
    assert (cache.pool.stats().committed, cache.pool.stats().mapped) == (held, 0)
    cache.reclaim(1 << 40)
    assert cache.cached_tokens == cache.pool.stats().committed == 0


def test_a_prefix_that_the_system_refused_to_keep_whole_can_be_evicted(monkeypatch):
    cache = open_cache()
    sequence = prefill(cache, list(range(100)))
    hold, asked = VTensor.hold, itertools.count()

    def refuse_the_third_block(plane, lo, hi):
        if next(asked) == 2 * cache.layout.planes + 1:
            raise VirtualMemoryError("no")
        return hold(plane, lo, hi)

    monkeypatch.setattr(VTensor, "hold", refuse_the_third_block)
    sequence.free()
    gc.collect()
    assert cache.cached_tokens == 64
    assert cache.pool.stats().committed == 2 * cache.layout.planes * PAGE
    cache.reclaim(1 << 40)
    assert cache.cached_tokens == cache.pool.stats().committed == 0


def test_what_the_device_has_not_is_taken_from_cached_prefixes():
    device = FakeDriver(memory=16 * CHUNK)
    with open_pool("cuda", chunks=1000, seam=device) as pool:
        cache = KVCache(pool, DENSE, max_tokens=4096)
        for start in (0, 5000):
            sequence = cache.create(range(start, start + 800))
            sequence.append(range(start, start + 800))
            sequence.free()
        assert device.live == 16 * CHUNK
        needy = pool.reserve(GIB)
        needy.extend(10 * CHUNK)
        assert 0 < cache.cached_tokens < 1600
        with pytest.raises(OutOfMemory, match="refused to map"):
            needy.extend(7 * CHUNK)
        assert needy.size == device.live == 10 * CHUNK


def test_nobody_is_refused_what_others_can_spare():
    each, failures = 2, []
    cache = open_cache(pages=4 * each * DENSE.planes)

    def traffic(draw):
        for _ in range(40):
            sequence = cache.create(tokens := [draw.randrange(1000) for _ in range(each * 32)])
            try:
                for token in tokens[sequence.length :]:
                    sequence.append([token])
            except OutOfMemory as error:
                failures.append(error)
            sequence.free()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=traffic, args=(random.Random(seed),)) for seed in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_running_out_leaves_a_sequence_as_it_was():
    cache = open_cache(pages=10)
    sequence = prefill(cache, list(range(64)))
    with pytest.raises(OutOfMemory):
        sequence.append(list(range(64)))
    assert sequence.length == 64
    check(sequence)
    assert cache.pool.stats().committed == 8 * PAGE
    with pytest.raises(OutOfMemory, match="at most 1,024"):
        sequence.append(2000)


def test_a_fork_without_memory_leaves_no_trace():
    cache = open_cache(pages=4)
    sequence = prefill(cache, [1, 2, 3])
    child = sequence.fork()
    with pytest.raises(OutOfMemory):
        child.append(1)
    check(sequence)
    child.free(keep=False)
    sequence.append([4])
    write(sequence, 3)
    check(sequence)


def test_activations_and_keys_share_one_budget():
    pool = Pool("host", budget=16 * PAGE, chunk=PAGE)
    arena, cache = Arena(pool, 12 * PAGE), KVCache(pool, DENSE, max_tokens=1024)
    arena.acquire(0, 12 * PAGE)
    arena.release(0, 12 * PAGE)
    sequence = prefill(cache, list(range(100)))  # 16 pages: takes what the arena had
    sequence.free()
    arena.acquire(0, 12 * PAGE)  # and the arena takes what the prefix cache had
    assert cache.cached_tokens < 100


def test_the_next_chunk_is_mapped_ahead():
    cache = open_cache(ahead=8)
    sequence = cache.create()
    sequence.append(24)
    sequence.append(2)
    for _ in range(2000):
        if cache.pool.stats().ahead_maps == 4:
            break
        __import__("time").sleep(0.001)
    before = cache.pool.stats().sync_maps
    for _ in range(10):
        sequence.append(1)
    assert cache.pool.stats().sync_maps == before
    assert sequence.length == 36


def test_bad_layouts_and_freed_sequences_are_named():
    with pytest.raises(UsageError, match="layers_per_chunk divides layers"):
        KVLayout(layers=3, heads=1, dim=1, layers_per_chunk=2)
    for wrong in (None, "2", 1.5, [2]):
        with pytest.raises(UsageError, match="whole number"):
            KVLayout(layers=wrong, heads=1, dim=1)
        with pytest.raises(UsageError, match="whole number"):
            KVCache(open_cache().pool, DENSE, max_tokens=wrong)
    with pytest.raises(UsageError, match="max_tokens=0"):
        KVCache(Pool("host", budget=1 << 22), DENSE, max_tokens=0)
    sequence = prefill(open_cache(), [1])
    sequence.free()
    for use in (sequence.free, sequence.fork, lambda: sequence.keys(0), lambda: sequence.append(100)):
        with pytest.raises(UseAfterFree, match="after it was freed"):
            use()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pages=st.sampled_from([60, 200, 4096]),
    layout=st.sampled_from([DENSE, UNEVEN, WIDE, HUGE]),
)
def test_random_traffic_never_mixes_sequences_up(seed, pages, layout):
    draw = random.Random(seed)
    cache = open_cache(pages=pages, layout=layout)
    fresh = itertools.count(10_000)
    prompts = [[draw.randrange(3) for _ in range(draw.randrange(1, 90))] for _ in range(4)]
    live = []
    for _ in range(60):
        kind = draw.random()
        try:
            if kind < 0.4 or not live:
                prompt = draw.choice(prompts)
                live.append(prefill(cache, [*prompt[: draw.randrange(1, len(prompt) + 1)], next(fresh)]))
            elif kind < 0.7:
                sequence = draw.choice(live)
                begin = sequence.length
                sequence.append([next(fresh) for _ in range(draw.randrange(1, 30))])
                write(sequence, begin)
            elif kind < 0.85:
                live.append(draw.choice(live).fork())
            elif kind < 0.9:
                live.append(cache.create(draw.choice(prompts)))
            else:
                live.pop(draw.randrange(len(live))).free(keep=draw.random() < 0.8)
        except OutOfMemory:
            continue
        if live:
            check(draw.choice(live))
    for sequence in live:
        check(sequence)
        sequence.free(keep=False)
    cache.reclaim(1 << 40)
    assert cache.cached_tokens == cache.pool.stats().committed == 0


def test_what_no_layer_or_number_of_tokens_is():
    with Pool("host", budget=1 << 22, chunk=4096) as pool:
        cache = KVCache(pool, KVLayout(2, 2, 16, torch.float32), max_tokens=100)
        sequence = cache.create()
        sequence.append(10)
        for layer in (-1, 2):
            for act in (sequence.keys, sequence.values, lambda layer: cache.batch([sequence], layer)):
                with pytest.raises(UsageError, match=f"layer {layer} of 2"):
                    act(layer)
        with pytest.raises(UsageError, match="-5 more tokens"):
            sequence.append(-5)
        assert sequence.length == 10
        gone = sequence.fork()
        gone.free()
        with pytest.raises(UseAfterFree):
            cache.batch([sequence, gone], 0)
