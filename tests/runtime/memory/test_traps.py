"""A touch of memory that is not there any more ends the process, and says whose memory it was. In child processes."""

import signal
import subprocess
import sys

import pytest

PREPARE = """
import faulthandler, sys, threading, torch
from superscaler.runtime.memory import Pool
pool = Pool("host", budget=64 << 20, name="serving")
a = pool.reserve(1 << 30, owner="kv cache")
a.extend(32 << 20)
view = a.tensor((8 << 20,), torch.float32)
view.fill_(1)
"""


def die(program: str) -> str:
    child = subprocess.run([sys.executable, "-c", PREPARE + program], capture_output=True, text=True, timeout=120)
    assert child.returncode == -signal.SIGSEGV, child.stdout + child.stderr
    return child.stderr


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("a.free(); view[0].item()", "UseAfterFree: byte 0 of kv cache#1 ('serving') was freed"),
        ("a.free(); view[6] = 1", "UseAfterFree: byte 24 of kv cache#1 ('serving') was freed"),
        ("pool.close(); view[0].item()", "UseAfterFree: byte 0 of kv cache#1 ('serving') was freed"),
        ("a.trim(4 << 20); view[2 << 20].item()", "byte 8,388,608 of kv cache#1 ('serving') is not mapped (4,194,304"),
        ("b = pool.reserve(1 << 30); b.share(a, 2 << 20); view[0] = 2", "is shared, hence read-only, and was written"),
        ("b = pool.reserve(1 << 30); b.share(a, 2 << 20); b.tensor((4,), torch.int32)[0] = 2", "byte 0 of vtensor#2"),
        ("a.free(); view.sum()", "('serving') was freed"),
        ("a.free(); t = threading.Thread(target=view.sum); t.start(); t.join()", "UseAfterFree: byte"),
        ("faulthandler.enable(); a.free(); view[0].item()", "UseAfterFree: byte 0 of kv cache#1"),
    ],
)
def test_a_touch_of_what_is_gone_is_trapped_and_named(program, message):
    assert message in die(program)


def test_the_handler_before_ours_still_has_its_say():
    stderr = die("faulthandler.enable(); a.free(); view[0].item()")
    assert "Fatal Python error: Segmentation fault" in stderr


def test_a_fault_that_is_none_of_ours_is_not_named():
    stderr = die("import ctypes; ctypes.string_at(8)")
    assert "UseAfterFree" not in stderr
    assert "VirtualMemoryError" not in stderr


def test_a_signal_that_is_sent_is_not_swallowed():
    die("import signal; signal.raise_signal(signal.SIGSEGV)")
    die("import os, signal; os.kill(os.getpid(), signal.SIGSEGV); import time; time.sleep(30)")


def test_an_overrun_into_the_reserved_rest_is_trapped():
    stderr = die("import ctypes; ctypes.string_at(a.address + a.mapped, 1)")
    assert "byte 33,554,432 of kv cache#1 ('serving') is not mapped" in stderr
