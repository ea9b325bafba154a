"""A crew: all workers of a job, wherever they run. Here: in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from superscaler.errors import WorkerError
from superscaler.ir.plan import Plan
from superscaler.runtime.inline import Exchange, InlineComm, drive
from superscaler.runtime.worker import Worker, WorkerOptions, bodies_of, make_worker

Inputs = Sequence[Mapping[str, Tensor]]  # per worker: the parts of the inputs that it needs


class Crew(Protocol):
    """What a job asks of its workers."""

    size: int
    shared: bool  # several workers run in one process

    def run(self, entry: str, inputs: Inputs, seed: tuple[int, int]) -> list[dict[str, float]]:
        """One run of an entry on all workers; per worker, its scalar outputs."""
        ...

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """A method of every worker, with its own arguments; the results in the order of the workers."""
        ...

    def close(self) -> None:
        """End what was started; nothing is left behind. May be called again."""
        ...


class InlineCrew:
    """All workers as coroutines of this process: deterministic, and with one worker nothing but a loop."""

    def __init__(self, plan: Plan, options: WorkerOptions) -> None:
        self.size = plan.workers
        self.shared = plan.workers > 1
        self.exchange = Exchange()
        self.workers: list[Worker] = []
        bodies = bodies_of(options)
        try:
            for i in range(plan.workers):
                self.workers.append(make_worker(plan, i, InlineComm(self.exchange, i), options, bodies))
        except BaseException:
            self.close()
            raise

    def run(self, entry: str, inputs: Inputs, seed: tuple[int, int]) -> list[dict[str, float]]:
        try:
            with torch.no_grad():
                drive({w.index: w.run(entry, part, seed) for w, part in zip(self.workers, inputs, strict=True)})
        except WorkerError as e:
            self.exchange.clear()
            raise self._located(e, entry) from e.__cause__
        except BaseException:
            self.exchange.clear()
            raise
        return [w.scalars(entry) for w in self.workers]

    def _located(self, error: WorkerError, entry: str) -> WorkerError:
        tasks = [f"worker {w.index}, last task: {w.task(entry)}" for w in self.workers]
        return WorkerError(error.what, *error.details, *tasks, hint=error.hint)

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        with torch.no_grad():
            return [getattr(w, method)(*args) for w, args in zip(self.workers, arguments, strict=True)]

    def close(self) -> None:
        while self.workers:
            self.workers.pop().close()
        self.exchange.clear()
