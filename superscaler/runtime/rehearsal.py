"""A rehearsal: every entry is run once before a job's state is there, so that what compiles at its first call has done
so before the first step. Nothing is sent in it: each worker rehearses alone, on zeros."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.layout import PartialKind
from superscaler.runtime.comm import Comm, Group, Handle, Key, Posted
from superscaler.runtime.execution import Execution

_NOTHING = Posted("rehearsal", (0, 0), ())


class _Over:
    """A communication that need not be waited for."""

    posted = _NOTHING

    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        return


OVER: Handle = _Over()


class _Alone:
    ordered = False


ALONE: Any = _Alone()
"""The communication of a worker that has no peers: a rehearsal stands before it, or it does not run."""


class Rehearsal:
    """Stands before the communication of a worker: in a rehearsal all of it is over at once, and brings zeros."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.ordered = comm.ordered
        self.on = False

    def run(self, executions: Iterable[Execution]) -> None:
        """Rehearse entries. State and arena hold anything afterwards."""
        self.on = True
        try:
            for execution in executions:
                inputs = {
                    name: torch.zeros(execution.binding.local(v, {}).shape, dtype=execution.binding.dtype(v))
                    for name, v in execution.program.inputs.items()
                }
                for handle in execution.run(inputs, (0, 0)):
                    handle.wait()
        finally:
            self.on = False

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle | None:
        return None if self.on else self.comm.send(tensor, peer, key)

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        return self._zeros(tensor) if self.on else self.comm.recv(tensor, peer, key)

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        return OVER if self.on else self.comm.all_reduce(tensor, kind, group, key)

    def reduce_scatter(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        return self._zeros(out) if self.on else self.comm.reduce_scatter(out, tensor, kind, group, key)

    def all_gather(self, out: Tensor, tensor: Tensor, group: Group, key: Key) -> Handle:
        return self._zeros(out) if self.on else self.comm.all_gather(out, tensor, group, key)

    def all_to_all(
        self, out: Tensor, tensor: Tensor, taken: list[int], given: list[int], group: Group, key: Key
    ) -> Handle:
        return self._zeros(out) if self.on else self.comm.all_to_all(out, tensor, taken, given, group, key)

    def _zeros(self, tensor: Tensor) -> Handle:
        tensor.zero_()
        return OVER
