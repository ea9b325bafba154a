"""Every byte, at sizes that are no multiples of anything: random operations beside a model of plain byte arrays.

Where :mod:`shadow` follows words of whole chunks under failing system calls, this follows all bytes under odd sizes,
dtypes and offsets, and knows for each call whether it must succeed.
"""

import random
import sys
import threading

import numpy as np
import pytest
import torch
from memory_pools import BACKENDS, open_pool

from superscaler.errors import SuperscalerError, VirtualMemoryError

DTYPES = (torch.uint8, torch.bool, torch.int16, torch.float16, torch.float32, torch.int64, torch.complex64)
CHUNKS = 40


class Copy:
    """A vTensor, and the bytes of its chunks: the same array wherever a chunk is shared."""

    def __init__(self, vtensor):
        self.vtensor = vtensor
        self.chunks: list[np.ndarray] = []
        self.size = 0


class Bytes:
    """The pool beside the arrays. ``alone``: nobody else uses it, so that its books are known exactly."""

    def __init__(self, pool, seed, *, alone=True):
        self.pool, self.draw, self.alone = pool, random.Random(seed), alone
        self.chunk = pool.chunk
        self.copies: list[Copy] = []
        self.values = np.random.default_rng(seed)

    def odd(self, size):
        near = (size // 2, size - 1, size, size + 1, self.chunk - 1, self.chunk, self.chunk + 1, 2 * self.chunk + 3)
        return self.draw.choice((0, 1, *near, self.draw.randrange(size + 2)))

    def used(self):
        return len({id(chunk) for copy in self.copies for chunk in copy.chunks})

    def shared(self, chunk):
        return sum(each is chunk for copy in self.copies for each in copy.chunks) > 1

    def attempt(self, act, legal):
        """Whether it was done. ``legal`` None: that depends on what others hold."""
        refused = None
        try:
            act()
        except SuperscalerError as error:
            refused = error
        assert legal is None or legal == (refused is None), refused or "this should have been refused"
        return refused is None

    def step(self):
        if len(self.copies) < 2 or (len(self.copies) < 9 and self.draw.random() < 0.06):
            size = self.draw.choice((1, self.chunk - 1, self.chunk + 1, 5 * self.chunk + 7, 12 * self.chunk, 1 << 34))
            self.copies.append(Copy(self.pool.reserve(size)))
            return
        act = self.draw.choices(
            (self.extend, self.trim, self.share, self.writable, self.free, self.touch), (26, 10, 16, 12, 2, 34)
        )[0]
        act(self.draw.choice(self.copies))

    def extend(self, copy):
        more = self.odd(3 * self.chunk)
        need = -(-(copy.size + more) // self.chunk)
        fits = need * self.chunk <= copy.vtensor.reserved and more >= 0
        room = self.used() + max(0, need - len(copy.chunks)) <= CHUNKS
        if self.attempt(lambda: copy.vtensor.extend(more), (fits and room) if self.alone else fits and None):
            copy.chunks += [np.zeros(self.chunk, np.uint8) for _ in range(need - len(copy.chunks))]
            copy.size += more
        assert copy.vtensor.size == copy.size

    def trim(self, copy):
        size = self.odd(copy.size)
        if self.attempt(lambda: copy.vtensor.trim(size), 0 <= size <= copy.size):
            del copy.chunks[-(-size // self.chunk) :]
            copy.size = size

    def share(self, copy):
        source, start = self.draw.choice(self.copies), self.draw.choice((0, 0, self.chunk, 1, -self.chunk))
        size = self.odd(source.size)
        lo, hi = start // self.chunk, -(-(start + size) // self.chunk)
        whole = not start % self.chunk and not copy.size % self.chunk
        room = (copy.size // self.chunk + hi - lo) * self.chunk <= copy.vtensor.reserved
        legal = size == 0 or (size > 0 and start >= 0 and whole and room and hi <= len(source.chunks))
        if self.attempt(lambda: copy.vtensor.share(source.vtensor, size, start), legal) and size:
            copy.chunks += source.chunks[lo:hi]
            copy.size += size

    def writable(self, copy):
        start = self.odd(copy.size)
        stop = start + self.odd(copy.size)
        inside = 0 <= start <= stop <= len(copy.chunks) * self.chunk
        self.attempt(lambda: copy.vtensor.writable(start, stop), None if inside else False)
        # Where memory ran out in the middle, what was copied is ours.
        for index in range(start // self.chunk, -(-stop // self.chunk)) if inside else ():
            at = index * self.chunk
            if copy.vtensor.is_writable(at, at + 1) and self.shared(copy.chunks[index]):
                copy.chunks[index] = copy.chunks[index].copy()

    def free(self, copy):
        self.copies.remove(copy)
        copy.vtensor.free()
        self.attempt(lambda: copy.vtensor.extend(1), False)
        self.attempt(lambda: copy.vtensor.tensor((1,), torch.uint8), False)

    def touch(self, copy):
        """Read through a view of any dtype, and write where that is allowed."""
        dtype = self.draw.choice(DTYPES)
        offset = self.draw.choice((0, dtype.itemsize, 1, 3, self.odd(copy.size)))
        count = self.draw.choice(
            (0, 1, 7, max(0, copy.size - offset) // dtype.itemsize, copy.size // dtype.itemsize + 2)
        )
        size, mapped = count * dtype.itemsize, len(copy.chunks) * self.chunk
        views = []
        legal = offset >= 0 and not offset % dtype.itemsize and offset + size <= mapped
        made = self.attempt(lambda: views.append(copy.vtensor.tensor((1, count), dtype, offset=offset)), legal)
        if not made or not size:
            return
        (view,) = views
        assert view.shape == (1, count)
        raw = view.view(-1).view(torch.uint8).numpy()
        assert np.array_equal(raw, np.concatenate(copy.chunks)[offset : offset + size])
        if copy.vtensor.is_writable(offset, offset + size):
            raw[:] = self.values.integers(0, 2, size, np.uint8)  # bytes that are booleans, too
            for index in range(offset // self.chunk, -(-(offset + size) // self.chunk)):
                assert not self.shared(copy.chunks[index]), "what may be written belongs to nobody else"
                first = index * self.chunk
                lo, hi = max(offset, first), min(offset + size, first + self.chunk)
                copy.chunks[index][lo - first : hi - first] = raw[lo - offset : hi - offset]

    def close(self):
        for copy in self.copies:
            if copy.chunks:
                whole = copy.vtensor.tensor((len(copy.chunks) * self.chunk,), torch.uint8).numpy()
                assert np.array_equal(whole, np.concatenate(copy.chunks))
        if self.alone:
            self.pool.settle()
            assert self.pool.stats().committed == self.used() * self.chunk
        for copy in self.copies:
            copy.vtensor.free()
        self.copies.clear()


@pytest.mark.parametrize("guard", ["trap", "zero"])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_bytes_at_odd_sizes(backend, lazy, guard):
    with open_pool(backend, CHUNKS, lazy=lazy, guard=guard) as pool:
        found = Bytes(pool, seed=5)
        for _ in range(3_000):
            found.step()
        found.close()
        pool.settle()
        assert pool.stats().committed == pool.stats().mapped == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_others_share_what_its_owner_grows_and_trims(backend):
    failures, done = [], threading.Event()
    with open_pool(backend, chunks=64) as pool:
        chunk, source = pool.chunk, pool.reserve(1 << 30)

        def share() -> None:
            while not done.is_set():
                copy = pool.reserve(1 << 30)
                try:
                    copy.share(source, 3 * chunk)
                    copy.writable(0, 3 * chunk)
                    copy.tensor((3 * chunk,), torch.uint8).fill_(1)
                    source.hold(0, 2 * chunk).free()
                except VirtualMemoryError:
                    continue
                except BaseException as error:
                    failures.append(error)
                finally:
                    copy.free()

        threads = [threading.Thread(target=share) for _ in range(2)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for _ in range(250):
            source.extend(4 * chunk)
            source.trim(0)
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
        assert failures == []
        source.free()
        assert pool.stats().committed == pool.stats().shared == 0


def test_several_threads_on_one_pool():
    failures = []
    with open_pool("host", chunks=100 * CHUNKS, lazy=True) as pool:

        def work(seed):
            try:
                found = Bytes(pool, seed, alone=False)
                for _ in range(2_000):
                    found.step()
                found.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        pool.settle()
        assert pool.stats().committed == 0
