"""Pools: parameters, names, processes, figures."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import torch
from memory_pools import BACKENDS, CHUNK, open_pool

from superscaler.errors import BackendUnavailable, UsageError, UseAfterFree
from superscaler.runtime.memory import Pool

GIB = 1 << 30


def test_bad_parameters_are_usage_errors():
    with pytest.raises(UsageError, match="did you mean 'host'"):
        Pool(backend="hosts")
    with pytest.raises(UsageError, match="less than one chunk"):
        Pool(budget=1000)
    with pytest.raises(UsageError, match="page size"):
        Pool(chunk=1000)
    with pytest.raises(UsageError, match="guard"):
        Pool(guard="none")


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA driver")
def test_without_a_driver_the_cuda_backend_says_so_and_the_rest_works():
    told = r"no NVIDIA driver(.|\n)*Pool\(backend=\"host\"\)|needs cuda-python(.|\n)*superscaler\[gpu\]"
    with pytest.raises(BackendUnavailable, match=told):
        Pool(backend="cuda")
    with Pool(backend="host", budget=4 << 20) as pool:
        pool.reserve(GIB).extend(1)


def test_importing_it_does_not_import_torch():
    program = "import sys, superscaler.runtime.memory as m; m.Pool().close(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_peak_is_the_most_that_was_ever_committed(backend):
    with open_pool(backend) as pool:
        a, b = pool.reserve(GIB), pool.reserve(GIB)
        a.extend(5 * CHUNK)
        b.extend(2 * CHUNK)
        a.free()
        b.extend(CHUNK)
        assert pool.stats().peak == 7 * CHUNK
        assert pool.stats().committed == 3 * CHUNK


def test_physical_is_what_the_system_says():
    with open_pool("host") as pool:
        a = pool.reserve(GIB)
        a.extend(4 * CHUNK)
        assert pool.stats().physical == 0, "nothing was touched yet"
        a.tensor((4 * CHUNK,), torch.uint8)[: 2 * CHUNK] = 1
        assert pool.stats().physical == 2 * CHUNK


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_grown_run_is_one_call(backend):
    with open_pool(backend) as pool:
        a = pool.reserve(GIB)
        before = pool.stats().calls
        a.extend(32 * CHUNK)
        after = pool.stats().calls
        span_call = "mprotect" if backend == "host" else "set_access"
        assert after[span_call] - before.get(span_call, 0) == 1
        if backend == "host":
            assert sum(after.values()) - sum(before.values()) == 1


def test_owners_are_counted_apart():
    with open_pool("host") as pool:
        a, b = pool.reserve(GIB, "weights"), pool.reserve(GIB, "kv")
        a.extend(3 * CHUNK)
        b.share(a, 2 * CHUNK)
        b.extend(CHUNK)
        rows = {row.owner: (row.reserved, row.mapped, row.shared) for row in pool.owners()}
        assert rows == {"weights": (GIB, 3 * CHUNK, 2 * CHUNK), "kv": (GIB, 3 * CHUNK, 2 * CHUNK)}
        b.writable(0, CHUNK)
        rows = {row.owner: row.shared for row in pool.owners()}
        assert rows == {"weights": CHUNK, "kv": CHUNK}
        a.free()
        assert {row.owner: row.shared for row in pool.owners()} == {"weights": 0, "kv": 0}


def test_memory_that_someone_can_spare_is_asked_for():
    with open_pool("host", chunks=4) as pool:
        spare, greedy = pool.reserve(GIB), pool.reserve(GIB)
        spare.extend(4 * CHUNK)

        class Owner:
            def __init__(self) -> None:
                self.asked: list[int] = []

            def reclaim(self, nbytes: int) -> int:
                self.asked.append(nbytes)
                spare.trim(spare.size - nbytes)
                return nbytes

        owner = Owner()
        pool.add_reclaimer(owner.reclaim)
        greedy.extend(3 * CHUNK)
        assert owner.asked == [3 * CHUNK]
        assert (spare.size, greedy.size) == (CHUNK, 3 * CHUNK)
        pool.remove_reclaimer(owner.reclaim)


def test_two_processes_may_give_their_pools_one_name():
    program = """
import torch
from superscaler.runtime.memory import Pool
pool = Pool("host", budget=8 << 20, name="twin")
a = pool.reserve(1 << 30)
a.extend(4 << 20)
x = a.tensor((4 << 20,), torch.uint8)
assert not x.any()
x.fill_(1)
print("ready", flush=True)
input()
assert (x == 1).all()
"""
    with Pool("host", budget=8 << 20, name="twin") as pool:
        ours = pool.reserve(GIB)
        ours.extend(4 << 20)
        x = ours.tensor((4 << 20,), torch.uint8)
        x.fill_(2)
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        assert (x == 2).all()
        x.fill_(3)
        child.communicate("\n", timeout=60)
        assert child.returncode == 0


def test_a_killed_process_leaves_nothing_behind():
    program = """
import torch
from superscaler.runtime.memory import Pool
a = Pool("host", budget=512 << 20, name="killed").reserve(1 << 40)
a.extend(256 << 20)
a.tensor((256 << 20,), torch.uint8).fill_(1)
print("ready", flush=True)
input()
"""
    files = set(os.listdir("/dev/shm"))
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    during = psutil.virtual_memory().shared
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert during - psutil.virtual_memory().shared > 200 << 20
    assert set(os.listdir("/dev/shm")) <= files


def test_a_forked_child_has_no_part_in_the_pool():
    with open_pool("host") as pool:
        a = pool.reserve(GIB)
        a.extend(2 * CHUNK)
        a.tensor((2 * CHUNK,), torch.uint8).fill_(4)
        child = os.fork()
        if not child:
            code = 1
            try:
                a.extend(CHUNK)
            except UseAfterFree as error:
                code = 0 if "belongs to process" in str(error) else 2
            del a
            pool.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (a.tensor((2 * CHUNK,), torch.uint8) == 4).all()


def test_threads_may_share_a_pool():
    with open_pool("host", chunks=400) as pool:
        failures: list[BaseException] = []

        def work(value: int) -> None:
            try:
                for _ in range(100):
                    a = pool.reserve(GIB)
                    a.extend(4 * CHUNK)
                    x = a.tensor((4 * CHUNK,), torch.uint8)
                    assert not x.any()
                    x.fill_(value)
                    b = pool.reserve(GIB)
                    b.share(a, 4 * CHUNK)
                    a.free()
                    assert (b.tensor((4 * CHUNK,), torch.uint8) == value).all()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failures
        assert pool.stats().committed == 0
