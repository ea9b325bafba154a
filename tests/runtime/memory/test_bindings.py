"""The CUDA backend through the real cuda-python, down to C calls with real structures, on a libcuda without a device.

``fake_driver`` stands above cuda-python; this stand-in below it, so the seam between them is tried as well: names,
order and types of arguments, structures, what is returned, and contexts of threads. In child processes, since here
there is no driver.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER, TRITON = shutil.which("cc"), importlib.util.find_spec("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPILER or not TRITON, reason="needs a C compiler, and triton's cuda.h"),
    pytest.mark.skipif(not importlib.util.find_spec("cuda"), reason="needs cuda-python"),
]

PROGRAM = """
import ctypes, gc, random
import torch
from shadow import Shadow, random_step
from superscaler.errors import OutOfMemory
from superscaler.runtime.memory import Pool
from superscaler.runtime.memory.cuda_driver import CudaDriver

def tensor(self, address, size, keep):
    memory = (ctypes.c_char * size).from_address(address)
    memory.keep = keep
    return torch.frombuffer(memory, dtype=torch.uint8)

CudaDriver.tensor = tensor  # torch sees no device here
MIB = 1 << 20
for lazy in (False, True):
    with Pool("cuda", budget=2 << 30, lazy=lazy) as pool:
        a, b = pool.reserve(1 << 40), pool.reserve(1 << 40)
        a.extend(8 * MIB)
        b.extend_ahead(2 * MIB)
        x = a.tensor((8 * MIB,), torch.uint8)
        assert not x.any()
        x.fill_(2)
        b.share(a, 8 * MIB)
        b.writable(0, 1)
        y = b.tensor((8 * MIB,), torch.uint8)
        y[0] = 3
        assert x[0] == 2 and torch.equal(x[1:], y[1:])
        try:
            b.extend(1 << 30)
            raise SystemExit("there is no such memory")
        except OutOfMemory as error:
            print(error)
        a.free()
        assert y.sum() == 3 + 2 * (8 * MIB - 1)
        del x, y
for lazy in (False, True):
    shadow, draw = Shadow("cuda", device=0, lazy=lazy), random.Random(5)
    for step in range(300):
        random_step(shadow, draw)
        if step % 100 == 0:
            shadow.check_all()
    shadow.close()
    del shadow
del a, b, pool
gc.collect()
left = ctypes.CDLL("libcuda.so.1").stand_in_left
left.restype = ctypes.c_size_t
assert not left(), left()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a process which finds the stand-in where it looks for the driver."""
    folder = tmp_path_factory.mktemp("driver")
    assert COMPILER
    assert TRITON
    assert TRITON.origin
    headers = Path(TRITON.origin).parent / "backends" / "nvidia" / "include"
    flags = ["-shared", "-fPIC", "-w", "-I", str(headers), "-o", str(folder / "libcuda.so.1")]
    subprocess.run([COMPILER, *flags, str(HERE / "stand_in_libcuda.c"), "-ldl", "-lpthread"], check=True)
    paths = os.pathsep.join(map(str, (HERE.parents[2], HERE)))
    return os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths}


def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)


def test_pools_through_cuda_python(environment: dict[str, str]) -> None:
    done = run(PROGRAM, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY") == 2


def test_a_driver_without_a_device_is_named(environment: dict[str, str]) -> None:
    program = "from superscaler.runtime.memory import Pool; Pool('cuda')"
    done = run(program, environment | {"STAND_IN_WITHOUT_DEVICE": "1"})
    assert "BackendUnavailable: the cuda backend has no NVIDIA driver or device" in done.stderr
    assert "CUDA_ERROR_NO_DEVICE" in done.stderr
