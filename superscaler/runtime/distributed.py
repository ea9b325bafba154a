"""Communication between processes by ``torch.distributed``: gloo on CPUs, NCCL where there are GPUs.

Process groups are made at once, in one order for all workers, when a job starts. Every wait has an end.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.errors import WorkerError
from superscaler.ir.layout import PartialKind
from superscaler.ir.plan import Plan
from superscaler.runtime.comm import Group, Handle, Key, Posted

# Named so from torch 2.12 on; 2.11 has them under the names that are deprecated since.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)
_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class CommunicationFailed(WorkerError):
    """A communication did not finish, or failed: often the consequence of what happened to a peer."""


class _Working:
    """A communication that ``torch.distributed`` carries out."""

    def __init__(self, posted: Posted, worker: int, work: Any, limit: timedelta) -> None:
        self.posted = posted
        self.worker = worker
        self.work = work
        self.limit = limit

    def ready(self) -> bool:
        return self.work.is_completed()

    def wait(self) -> None:
        try:
            self.work.wait(self.limit)
        except RuntimeError as e:
            reason = str(e).partition("\n")[0]
            late = "imed out" in reason or "imeout" in reason
            what = f"did not finish within {self.limit.total_seconds():g} s" if late else "failed"
            raise CommunicationFailed(f"worker {self.worker}: {self.posted} {what}", reason) from e


def groups_of(plan: Plan) -> list[Group]:
    """Every group of two or more workers that communicates collectively, in one order for all workers."""
    found = {
        group: None
        for name in sorted(plan.entries)
        for grouping in plan.entries[name].groupings
        for group in grouping.groups
        if len(group) > 1
    }
    return list(found)


class DistributedComm:
    """One worker's side. See :class:`~superscaler.runtime.comm.Comm`.

    The process group of all workers must exist (:func:`connect`). ``limit``: seconds that any wait may take.
    """

    def __init__(self, plan: Plan, worker: int, *, limit: float) -> None:
        self.worker = worker
        self.ordered = "nccl" in dist.get_backend_config()  # it has no tags
        self.limit = timedelta(seconds=limit)
        self.stride = max(entry.microbatches for entry in plan.entries.values())
        everyone = tuple(range(plan.workers))
        self.groups: dict[Group, Any] = {everyone: dist.group.WORLD}
        for group in groups_of(plan):
            if group not in self.groups:
                self.groups[group] = dist.new_group(list(group), timeout=self.limit)

    def _handle(self, kind: str, key: Key, peers: Group, work: Any) -> Handle:
        return _Working(Posted(kind, key, peers), self.worker, work, self.limit)

    def _tag(self, key: Key) -> int:
        return key[0] * self.stride + key[1]

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        return self._handle("send", key, (peer,), dist.isend(tensor, peer, tag=self._tag(key)))

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        return self._handle("receive", key, (peer,), dist.irecv(tensor, peer, tag=self._tag(key)))

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        work = dist.all_reduce(tensor, _OPS[kind], self.groups[group], async_op=True)
        return self._handle("all_reduce", key, group, work)

    def reduce_scatter(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        work = _reduce_scatter(out, tensor.view(-1), _OPS[kind], self.groups[group], async_op=True)
        return self._handle("reduce_scatter", key, group, work)

    def all_gather(self, out: Tensor, tensor: Tensor, group: Group, key: Key) -> Handle:
        work = _all_gather(out.view(-1), tensor, self.groups[group], async_op=True)
        return self._handle("all_gather", key, group, work)

    def all_to_all(
        self, out: Tensor, tensor: Tensor, taken: list[int], given: list[int], group: Group, key: Key
    ) -> Handle:
        work = dist.all_to_all_single(out, tensor, taken, given, self.groups[group], async_op=True)
        return self._handle("all_to_all", key, group, work)


def connect(worker: int, workers: int, host: str, port: int, *, device: torch.device, limit: float) -> None:
    """Join the process group of all workers; the store is served at ``host:port`` (see :func:`serve`)."""
    time = timedelta(seconds=limit)
    kind = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    store = kind(host, port, workers, is_master=False, timeout=time)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    dist.init_process_group(backend, store=store, rank=worker, world_size=workers, timeout=time, **options)


def serve(workers: int, *, limit: float) -> Any:
    """The store by which workers find each other, on a free port (``.port``) of this machine."""
    time = timedelta(seconds=limit)
    kind = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    return kind("0.0.0.0", 0, workers, is_master=True, timeout=time, wait_for_workers=False)


def disconnect() -> None:
    """Leave all process groups."""
    if dist.is_initialized():
        dist.destroy_process_group()
