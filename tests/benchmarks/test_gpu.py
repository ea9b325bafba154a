"""``benchmarks/gpu.py``: its rows at tiny sizes on this machine, and that nothing in one row stops the others."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def command(*options: str | Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, options)]
    return subprocess.run(script, capture_output=True, text=True, timeout=280)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_json(tmp_path: Path) -> None:
    done = command("--output", tmp_path / "gpu.json")
    assert done.returncode == 0
    assert "there is no GPU here" in done.stdout
    (result,) = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert (result["row"], result["what"], result["met"]) == ("all", "could not", None)


def measured(tmp_path: Path, rows: str) -> list[dict[str, Any]]:
    done = command("--device", "cpu", "--quick", "--rows", rows, "--minutes", "4", "--output", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert list(dict.fromkeys(r["row"] for r in results)) == rows.split(",")
    assert not [r for r in results if r["what"] == "could not"]
    return results


def test_what_does_not_depend_on_speed_is_met_here_too(tmp_path: Path) -> None:
    results = measured(tmp_path, "control,growth,sharing,idle,safety")
    met = {(r["row"], r["what"]): r["met"] for r in results if r["bar"] in ("0", "yes", "≤ 1.05", "no fault")}
    assert len(met) == 5
    assert all(met.values()), met


@pytest.mark.slow
def test_training_finds_the_largest_size(tmp_path: Path) -> None:
    results = measured(tmp_path, "gpt-checkpoint,tax")
    (found,) = (r["measured"] for r in results if r["what"].startswith("largest"))
    assert found == "64 (the most that is tried)"
    assert next(r["met"] for r in results if r["bar"] == "≤ budget")


@pytest.mark.slow
def test_every_other_row(tmp_path: Path) -> None:
    results = measured(tmp_path, "plain,budget,swin-co_shard,gpt-compile,decode,prefill")
    assert not [r for r in results if "could not" in r["measured"]]


ROWS = """
import os, sys, time
row = sys.argv[2]
print('{"row": "%s", "what": "first", "bar": "", "measured": "1", "met": true}' % row, flush=True)
if row == "crash":
    os.abort()
if row == "fails":
    raise RuntimeError("CUDA error: an illegal memory access")
if row == "hangs":
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "77.7"])
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("row", "why"),
    [("fine", None), ("crash", "killed by SIGABRT"), ("fails", "illegal memory"), ("hangs", "stopped after its 2 s")],
)
def test_a_row_ends_alone_and_what_it_has_measured_stands(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, why: str | None
) -> None:
    script = tmp_path / "rows.py"
    script.write_text(ROWS)
    monkeypatch.setattr(gpu, "__file__", str(script))
    begin = time.monotonic()
    found = list(gpu.run_process(row, argparse.Namespace(device="cpu", quick=True), 2.0))
    assert time.monotonic() - begin < 20
    assert found[0]["measured"] == "1"
    assert len(found) == (1 if why is None else 2)
    assert why is None or (found[1]["what"], why in found[1]["measured"]) == ("could not", True), found
    assert not any("77.7" in p.cmdline() for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"])


def test_the_time_is_shared_by_weight(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, float] = {}

    def run(name: str, options: Any, seconds: float) -> Any:
        given[name] = seconds
        yield {}

    monkeypatch.setattr(gpu, "run_process", run)
    list(gpu.run_rows(argparse.Namespace(rows=list(gpu.ROWS), minutes=8.0)))
    assert list(given) == list(gpu.ROWS)
    # Here no row has taken any time, so the last ones have all of it.
    assert sum(row.weight for row in gpu.ROWS.values()) <= 8 * 60 * 1.1
    assert given["control"] < 40
    assert given["prefill"] > 460
    list(gpu.run_rows(argparse.Namespace(rows=["control"], minutes=0.1)))


def test_sizes_are_doubled_then_halved(gpu: Any) -> None:
    training = importlib.import_module("gpu_training")
    for limit in range(90, 1700, 37):
        subject = training.Subject("size", 64, 16, 1600, None, None)
        best, failed, size, tried = 0, subject.most + subject.grain, subject.first, []
        while size:
            tried.append(size)
            best, failed = (size, failed) if size <= limit else (best, size)
            size = training.following(subject, best, failed)
        assert best <= limit
        assert min(limit, subject.most) - best < subject.grain
        assert len(tried) == len(set(tried)) < 16


def test_unknown_rows_and_full_sizes_on_a_cpu_are_refused() -> None:
    assert "no row is named 'contrl'" in command("--rows", "contrl").stderr
    assert "--quick" in command("--device", "cpu").stderr
