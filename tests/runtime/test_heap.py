"""What ops free stays for the next one while workers run, and goes back to the system after them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from superscaler.runtime.heap import glibc

FRESH = """
import resource, torch
from superscaler.runtime import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
heap.keep()
heap.keep()
heap.give_back()
kept = min(faults() for _ in range(30))  # the first ones make room: what is freed must fit, with its alignment
heap.give_back()
after = faults()
print(kept, after)
"""


@pytest.mark.skipif(glibc() is None, reason="not glibc")
def test_freed_memory_stays_until_the_last_worker_has_gone() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    kept, after = map(int, done.stdout.split())
    pages = (64 << 20) // 4096
    assert kept < pages // 100
    assert after > 16
