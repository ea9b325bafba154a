"""Communication between processes by ``torch.distributed``: gloo on CPUs, NCCL where there are GPUs. Small messages
between workers of one machine go by mailboxes (``mail``).

Process groups are made at once, in one order for all workers, when a job starts. Every wait has an end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.errors import WorkerError
from superscaler.ir.layout import PartialKind
from superscaler.ir.plan import Plan
from superscaler.runtime.comm import Group, Handle, Key, Posted
from superscaler.runtime.mail import Mail, deliver, received, receivers
from superscaler.runtime.mailbox import Mailbox
from superscaler.runtime.measuring import Holders, holders, settle

# Named so from torch 2.12 on; 2.11 has them under the names that are deprecated since.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)
_LOOP = "gloo_tcp_loop"  # the name of its threads
give_way = getattr(os, "sched_yield", lambda: None)
"""Called behind a send: a receiver on this machine is woken on the same processor, where it would wait until the sender
has nothing more to do, even if another processor is idle."""
_REDUCE: dict[str, Any] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}
_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class CommunicationFailed(WorkerError):
    """A communication did not finish, or failed: often the consequence of what happened to a peer."""


class _Working:
    """A communication that ``torch.distributed`` carries out."""

    __slots__ = ("held", "limit", "posted", "work", "worker")

    def __init__(self, posted: Posted, worker: int, work: Any, limit: timedelta, held: Holders) -> None:
        self.posted = posted
        self.held = held
        self.worker = worker
        self.work = work
        self.limit = limit

    def ready(self) -> bool:
        return self.work is None or self.work.is_completed()

    def wait(self) -> None:
        work, self.work = self.work, None  # it holds the tensors; whoever waited may keep this handle
        if work is None:
            return
        try:
            work.wait(self.limit)
        except RuntimeError as e:
            reason = str(e).partition("\n")[0]
            late = "imed out" in reason or "imeout" in reason
            limit = self.limit.total_seconds()
            raise (_late(self.worker, self.posted, limit) if late else _failed(self.worker, self.posted, reason)) from e
        del work
        settle(self.held)
        self.held = ()


class _Awaited:
    """A message to come by a mailbox."""

    __slots__ = ("box", "comm", "key", "peer", "tensor")

    def __init__(self, comm: DistributedComm, peer: int, key: Key, box: Mailbox, tensor: Tensor) -> None:
        self.comm, self.peer, self.key, self.box, self.tensor = comm, peer, key, box, tensor

    @property
    def posted(self) -> Posted:
        return Posted("receive", self.key, (self.peer,))

    def ready(self) -> bool:
        return self.box.full()

    def wait(self) -> None:
        comm, limit = self.comm, self.comm.limit.total_seconds()
        try:
            self.box.take(self.tensor, limit, comm.mail.gone[self.peer])
        except TimeoutError as e:
            raise _late(comm.worker, self.posted, limit) from e
        except ConnectionError as e:
            raise _failed(comm.worker, self.posted, str(e)) from e


def _late(worker: int, posted: Posted, limit: float) -> CommunicationFailed:
    what = f"worker {worker}: {posted} did not finish within {limit:g} s"
    return CommunicationFailed(what, hint="launch(..., timeout=...), if a task may take so long")


def _failed(worker: int, posted: Posted, reason: str) -> CommunicationFailed:
    return CommunicationFailed(f"worker {worker}: {posted} failed", reason, hint="what its peers report says why")


class _Reducing:
    """Rows under way from all members, reduced into ``out`` when they are there."""

    def __init__(self, exchange: Handle, rows: Tensor, out: Tensor, kind: PartialKind) -> None:
        self.posted = exchange.posted
        self.exchange = exchange
        self.rows: Tensor | None = rows
        self.out = out
        self.kind: PartialKind = kind

    def ready(self) -> bool:
        return self.exchange.ready()

    def wait(self) -> None:
        self.exchange.wait()
        if self.rows is not None:
            _REDUCE[self.kind](self.rows, 0, out=self.out)
            self.rows = None


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
    ``groups``: of workers that communicate collectively, equal in all of them. ``microbatches``: the most that an entry
    has. ``mail``: mailboxes for messages, instead of ``torch.distributed``, as far as they fit.
    """

    def __init__(
        self,
        worker: int,
        *,
        limit: float,
        groups: Sequence[Group] = (),
        microbatches: int = 1,
        mail: Mail | None = None,
    ) -> None:
        self.worker = worker
        self.ordered = "nccl" in dist.get_backend_config()  # it has no tags
        self.limit = timedelta(seconds=limit)
        self.stride = microbatches
        self.mail = Mail() if mail is None else mail
        self.world: Any = dist.group.WORLD
        self.backends: dict[str, Any] = {}  # by kind of device
        self.groups: dict[Group, Any] = {tuple(range(dist.get_world_size())): self.world}
        self._form(groups)

    @classmethod
    def of(cls, plan: Plan, worker: int, *, limit: float) -> DistributedComm:
        """The communication of a plan's worker; called by all of them at once."""
        on_gpu = "nccl" in dist.get_backend_config()
        theirs = {peer: received(plan, peer) for peer in receivers(plan, worker)}
        mail = None if on_gpu else deliver(worker, received(plan, worker), theirs)
        microbatches = max(entry.microbatches for entry in plan.entries.values())
        return cls(worker, limit=limit, groups=groups_of(plan), microbatches=microbatches, mail=mail)

    def _form(self, groups: Sequence[Group]) -> None:
        for group in groups:
            if group not in self.groups:
                self.groups[group] = dist.new_group(list(group), timeout=self.limit)
        _let_finish()

    def _handle(self, kind: str, key: Key, peers: Group, work: Any, held: Holders) -> Handle:
        return _Working(Posted(kind, key, peers), self.worker, work, self.limit, held)

    def _tag(self, key: Key) -> int:
        return key[0] * self.stride + key[1]

    def _backend(self, tensor: Tensor) -> Any:
        """What moves messages for the tensor's device: without torch's dispatcher, which takes a sixth of a post."""
        kind = tensor.device.type
        if kind not in self.backends:
            self.backends[kind] = self.world._get_backend(tensor.device)
        return self.backends[kind]

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle | None:
        box = self.mail.outgoing.get((key, peer))
        if box is not None and box.put(tensor):
            give_way()
            return None
        tensor = tensor.contiguous()
        held = holders(tensor)
        work = self._backend(tensor).send([tensor], peer, self._tag(key))
        give_way()
        return self._handle("send", key, (peer,), work, held)

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        box = self.mail.incoming.get((key, peer))
        if box is not None and box.fits(tensor):
            return _Awaited(self, peer, key, box, tensor)
        held = holders(tensor)
        work = self._backend(tensor).recv([tensor], peer, self._tag(key))
        return self._handle("receive", key, (peer,), work, held)

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        held = holders(tensor)
        work = dist.all_reduce(tensor, _OPS[kind], self.groups[group], async_op=True)
        return self._handle("all_reduce", key, group, work, held)

    def reduce_scatter(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        if not self.ordered:  # gloo reduces a copy of all rows over all members
            return self._by_exchange(out, tensor, kind, group, key)
        held = holders(out, tensor)
        work = _reduce_scatter(out, tensor.view(-1), _OPS[kind], self.groups[group], async_op=True)
        return self._handle("reduce_scatter", key, group, work, held)

    def _by_exchange(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        rows = torch.empty_like(tensor)
        held = holders(rows, tensor)
        work = dist.all_to_all_single(rows, tensor, group=self.groups[group], async_op=True)
        return _Reducing(self._handle("reduce_scatter", key, group, work, held), rows, out, kind)

    def all_gather(self, out: Tensor, tensor: Tensor, group: Group, key: Key) -> Handle:
        held = holders(out, tensor)
        work = _all_gather(out.view(-1), tensor, self.groups[group], async_op=True)
        return self._handle("all_gather", key, group, work, held)

    def all_to_all(
        self, out: Tensor, tensor: Tensor, taken: list[int], given: list[int], group: Group, key: Key
    ) -> Handle:
        held = holders(out, tensor)
        work = dist.all_to_all_single(out, tensor, taken, given, self.groups[group], async_op=True)
        return self._handle("all_to_all", key, group, work, held)


def connect(worker: int, workers: int, host: str, port: int, *, device: torch.device, limit: float) -> None:
    """Join the process group of all workers; the store is served at ``host:port`` (see :func:`serve`)."""
    time = timedelta(seconds=limit)
    kind = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    store = kind(host, port, workers, is_master=False, timeout=time)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    dist.init_process_group(backend, store=store, rank=worker, world_size=workers, timeout=time, **options)
    _let_finish()


def _let_finish() -> None:
    """Have the threads by which gloo moves messages wait until whoever computes on their processor lets go of it.

    Such a thread tries for the lock of a connection until its time slice ends. Where it has interrupted the worker that
    holds the lock, on a machine with fewer cores than workers, both stand still for milliseconds.
    """
    if sys.platform != "linux":
        return
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            if (task / "comm").read_text().strip() == _LOOP:
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))


def serve(workers: int, *, limit: float) -> Any:
    """The store by which workers find each other, on a free port (``.port``) of this machine."""
    time = timedelta(seconds=limit)
    kind = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    return kind("0.0.0.0", 0, workers, is_master=True, timeout=time, wait_for_workers=False)


def disconnect() -> None:
    """Leave all process groups, and wait for their threads.

    A group's threads end when nobody refers to it any more. One that lets go of its last tensor while Python shuts down
    would take the process with it.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # whatever had a communication may stand in a cycle of references
