"""Everything that needs an NVIDIA GPU, in one command of at most 8 minutes.

    python benchmarks/gpu.py [--rows control,growth,...] [--minutes 8] [--output FILE] [--device cuda|cpu] [--quick]

Runs what it can and says what it could not: each row in a process of its own, within its share of the time, so that a
crash, or memory that runs out, ends no other. Prints a table and writes JSON; exits with 0 also where there is no GPU.
``--device cpu --quick`` runs the same rows at tiny sizes on the host's memory and in Triton's interpreter: no figure of
that counts, but what the rows do is tried. Needs torch, triton, cuda-python and msgspec; neither ray nor ortools.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESERVE = 12.0  # seconds of all that are kept for ending


@dataclass(frozen=True)
class Row:
    """``module.function(*arguments, machine)``; ``weight``: its share of the time, in seconds of 8 minutes."""

    module: str
    function: str
    weight: int
    arguments: tuple[str, ...] = ()


ROWS: dict[str, Row] = {
    "control": Row("gpu_memory", "control", 30),
    "growth": Row("gpu_memory", "growth", 20),
    "sharing": Row("gpu_memory", "sharing", 20),
    "idle": Row("gpu_memory", "idle", 30),
    "plain": Row("gpu_kernels", "plain", 15),
    "budget": Row("gpu_memory", "budget", 25),
    "tax": Row("gpu_memory", "tax", 30),
    "safety": Row("gpu_memory", "safety", 30),
    **{
        f"{subject}-{way}": Row("gpu_training", "largest", weight, (subject, way))
        for way, weight in (("co_shard", 35), ("plain", 12), ("checkpoint", 15), ("compile", 35))
        for subject in ("swin", "gpt")
    },
    # Last, since they go cell by cell, as far as what the others have left allows.
    "decode": Row("gpu_kernels", "decode_cells", 70),
    "prefill": Row("gpu_kernels", "prefill_cells", 60),
}


def main() -> int:
    options = arguments()
    if options.inside:
        run_row(options.inside, options.device, options.quick, options.seconds)
        return 0
    missing = why_not(options.device)
    results: list[dict[str, Any]] = []
    machine: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    print(f"{'row':16} {'what':52} {'bar':14} measured")
    if missing:
        results.append(say(could_not("all", missing)))
    else:
        machine |= about(options.device)
        results += run_rows(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "device": options.device, "quick": options.quick, "results": results}
    options.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=rows_of, default=list(ROWS), help="which, by comma: " + ", ".join(ROWS))
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is for trying the rows: --quick")
    return options


def rows_of(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row is named {unknown[0]!r}: {', '.join(ROWS)}")
    return names


def why_not(device: str) -> str:
    """Why nothing can run here; empty if it can."""
    try:
        import torch
    except ImportError as error:
        return str(error)
    if device == "cuda" and not torch.cuda.is_available():
        return f"there is no GPU here, as far as torch {torch.__version__} can see"
    return ""


def about(device: str) -> dict[str, Any]:
    """The machine in words. Asked in another process: this one must hold no memory of the device."""
    script = "import torch; print(torch.__version__); "
    if device == "cuda":
        script += "p = torch.cuda.get_device_properties(0); print(p.name, p.total_memory >> 30, 'GiB')"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split("\n")
    return {"torch": told[0], "device": told[1] if device == "cuda" else "cpu"}


def run_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each row in its share of what is left of the time: what one does not need, those behind it have."""
    end = time.monotonic() + 60 * options.minutes - RESERVE
    for number, name in enumerate(options.rows):
        weights = [ROWS[other].weight for other in options.rows[number:]]
        seconds = (end - time.monotonic()) * weights[0] / sum(weights)
        if seconds < 5:
            yield say(could_not(name, "no time was left"))
            continue
        yield from run_process(name, options, seconds)


def run_process(name: str, options: argparse.Namespace, seconds: float) -> Iterator[dict[str, Any]]:
    """A row's lines as they come; what became of it if it did not end by itself."""
    command = [sys.executable, str(Path(__file__)), "--inside", name, "--device", options.device]
    command += ["--seconds", str(seconds), *(["--quick"] if options.quick else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if options.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    stopped = threading.Event()
    timer = threading.Timer(seconds, lambda: (stopped.set(), end_group(process)))
    reader.start()
    timer.start()
    try:
        for line in process.stdout or ():
            if line.startswith("{"):
                yield say(json.loads(line))
        code = process.wait()
    finally:
        timer.cancel()
        end_group(process)
        reader.join(5)
    if stopped.is_set():
        yield say(could_not(name, f"stopped after its {seconds:.0f} s; what stands above was measured"))
    elif code:
        yield say(could_not(name, reason(code, errors)))


def end_group(process: subprocess.Popen[str]) -> None:
    """End a row and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def reason(code: int, errors: Sequence[str]) -> str:
    """How it ended, and the last of what it said: an error of ours says what, where and what to try in three lines."""
    said = " | ".join([line.strip() for line in errors if line.strip()][-3:])
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return f"{how}: {said[-300:]}" if said else how


def could_not(row: str, why: str) -> dict[str, Any]:
    return {"row": row, "what": "could not", "bar": "", "measured": why, "met": None}


def say(result: dict[str, Any]) -> dict[str, Any]:
    verdict = {True: "  met", False: "  MISSED", None: ""}[result["met"]]
    text = f"{result['row']:16} {result['what']:52} {result['bar']:14} {result['measured']}{verdict}"
    print(text, flush=True)
    return result


def run_row(name: str, device: str, quick: bool, seconds: float) -> None:
    """In a process of its own: results as lines of JSON."""
    deadline = time.monotonic() + seconds - 2
    import importlib

    import torch
    from gpu_machine import Machine

    row = ROWS[name]
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    machine = Machine(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"), quick, deadline)
    function: Callable[..., Any] = getattr(importlib.import_module(row.module), row.function)
    for result in partial(function, *row.arguments)(machine):
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
