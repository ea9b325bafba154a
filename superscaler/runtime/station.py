"""What runs in a worker's process: a station that a crew calls. Knows nothing of who calls it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superscaler.errors import SuperscalerError, WorkerError
from superscaler.ir.plan import Plan
from superscaler.ir.region import Region, Span
from superscaler.runtime.custom import Exported, adopt
from superscaler.runtime.distributed import CommunicationFailed, DistributedComm, connect, serve
from superscaler.runtime.progress import Progress
from superscaler.runtime.worker import Worker, WorkerOptions, make_worker


@dataclass(frozen=True)
class Outcome:
    """What a call came to. ``rank``: how far an error is from its cause (0: a death; 2: a peer's fault, perhaps)."""

    value: Any
    error: Exception | None = None
    rank: int = 9


@dataclass(frozen=True)
class Packed:
    """A tensor as an array, which travels without being copied into a pickle."""

    array: np.ndarray[Any, Any]
    dtype: torch.dtype


_SAME_SIZE = {torch.bfloat16: torch.int16}


def pack(value: Any) -> Any:
    """The same data with tensors as arrays."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu()
        return Packed(flat.view(_SAME_SIZE.get(flat.dtype, flat.dtype)).numpy(), flat.dtype)
    if isinstance(value, dict):
        return {k: pack(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Region | Span):
        return type(value)(pack(v) for v in value)
    return value


def unpack(value: Any) -> Any:
    """The same data with tensors; they own their memory."""
    if isinstance(value, Packed):
        return torch.from_numpy(value.array.copy()).view(value.dtype)
    if isinstance(value, dict):
        return {k: unpack(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Region | Span):
        return type(value)(unpack(v) for v in value)
    return value


class Station:
    """One worker in a process of its own."""

    def __init__(self) -> None:
        self.store: Any = None
        self.worker: Worker | None = None

    def serve(self, workers: int, limit: float) -> Outcome:
        """Serve the store by which workers find each other; its port."""
        return self._safely(lambda: self._serve(workers, limit))

    def _serve(self, workers: int, limit: float) -> int:
        self.store = serve(workers, limit=limit)
        return self.store.port

    def start(
        self,
        plan: Plan,
        ops: Mapping[str, Exported],
        index: int,
        options: WorkerOptions,
        host: str,
        port: int,
        progress: Path | None,
    ) -> Outcome:
        """Become worker ``index`` of the plan; ``ops``: users' ops in it, which this process need not know."""
        return self._safely(lambda: self._start(plan, ops, index, options, host, port, progress))

    def _start(
        self,
        plan: Plan,
        ops: Mapping[str, Exported],
        index: int,
        options: WorkerOptions,
        host: str,
        port: int,
        progress: Path | None,
    ) -> None:
        adopt(ops)
        device = torch.device(options.device)
        if options.compile:
            # A pool of compilers per worker would be more processes than there are cores, and outlive the worker.
            import torch._inductor.config as inductor

            inductor.compile_threads = 1
        connect(index, plan.workers, host, port, device=device, limit=options.limit)
        comm = DistributedComm.of(plan, index, limit=options.limit)
        self.worker = make_worker(plan, index, comm, options)
        if progress is not None:
            self.worker.report(Progress.open(progress, plan.workers).numbers[index : index + 1])

    def run(self, entry: str, seed: tuple[int, int], names: list[str], *values: Any) -> Outcome:
        """One run of an entry; the scalar outputs that this worker holds."""
        return self._safely(lambda: self._run(entry, seed, names, values))

    def _run(self, entry: str, seed: tuple[int, int], names: list[str], values: tuple[Any, ...]) -> dict[str, float]:
        worker = self._worker()
        inputs = {n: unpack(v) for n, v in zip(names, values, strict=True)}
        with torch.no_grad():
            for handle in worker.run(entry, inputs, seed):
                handle.wait()
        return worker.scalars(entry)

    def call(self, method: str, *args: Any) -> Outcome:
        """A method of the worker."""

        def run() -> Any:
            with torch.no_grad():
                return pack(getattr(self._worker(), method)(*unpack(args)))

        return self._safely(run)

    def _worker(self) -> Worker:
        assert self.worker is not None
        return self.worker

    def _safely(self, run: Callable[[], Any]) -> Outcome:
        try:
            return Outcome(run())
        except CommunicationFailed as e:
            return Outcome(None, e, 2)
        except SuperscalerError as e:
            return Outcome(None, e, 1)
        except Exception as e:
            where = f"worker {self.worker.index}" if self.worker is not None else f"a worker on {socket.gethostname()}"
            return Outcome(None, WorkerError(f"{where} failed", f"{type(e).__name__}: {e}"), 1)
