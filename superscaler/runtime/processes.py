"""Processes that measure together: one per worker, each a module of ours run as a program.

Each is told its number, and where the store is by which they find each other.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from superscaler.errors import RunError
from superscaler.runtime.distributed import serve

MOST = 16  # workers that are measured together


def together(module: str, workers: int, arguments: Sequence[str], *, limit: float, doing: str) -> bytes:
    """Run ``python -m module WORKER PORT *arguments`` for every worker; the last line that the first one prints.

    ``doing``: in words. Raises :class:`RunError` if a process fails, or if they take more than ``limit`` seconds.
    """
    store = serve(workers, limit=limit)
    crew = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(worker), str(store.port), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for worker in range(workers)
    ]  # fmt: skip
    try:
        found = [process.communicate(timeout=limit) for process in crew]
    except subprocess.TimeoutExpired as e:
        raise RunError(f"{doing} took more than {limit:g} s", hint="again, when the machine has less to do") from e
    finally:
        for process in crew:
            process.kill()
            process.wait()
    for (_, errors), process in zip(found, crew, strict=True):
        if process.returncode:
            told = errors.decode(errors="replace").strip().splitlines()[-1:]
            raise RunError(f"{doing} failed", *told, hint="again; less memory in use, if it was ended by the system")
    return found[0][0].strip().splitlines()[-1]
