"""Which machine this is, as far as times depend on it; found out without torch."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import msgspec

from superscaler.ir.cluster import DEVICES


class Machine(msgspec.Struct, frozen=True):
    """What times depend on. ``kind``: the cluster preset that such a device is (``cpu``, ``h200``)."""

    kind: str
    processor: str
    cores: int
    threads: int
    torch: str

    def __str__(self) -> str:
        return f"{self.processor} ({self.cores} cores, {self.threads} threads a worker, torch {self.torch})"

    @property
    def file(self) -> str:
        """The name of its profile among others."""
        words = "".join(c if c.isalnum() else "-" for c in f"{self.processor} {self.cores} {self.threads} {self.torch}")
        return "-".join(filter(None, words.lower().split("-"))) + ".json"


def this_machine(workers: int = 1) -> Machine:
    """This machine as ``workers`` workers on it see it: its GPUs if it has any, else its cores, shared evenly."""
    gpus = _gpus()
    if gpus:
        kind = next((k for k in DEVICES if k in gpus[0].lower()), "cuda")
        return Machine(kind, gpus[0], len(gpus), 1, _torch())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine("cpu", _processor(), cores, max(1, cores // workers), _torch())


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "none"


def _gpus() -> list[str]:
    """The names of NVIDIA GPUs, as their driver gives them; none where torch is built without CUDA."""
    if _torch().endswith("+cpu"):
        return []
    found: list[str] = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
