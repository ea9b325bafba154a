"""Communication within one process: workers are coroutines that take turns.

Messages are copied when they are posted, so a send never waits. Reductions add in the order of the group's members:
results do not depend on who comes first. When no worker can go on, the job is stuck, and says so at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from superscaler.errors import WorkerError
from superscaler.ir.layout import PartialKind
from superscaler.runtime.comm import Group, Handle, Key, Posted

Address = tuple[Key, int, int]  # key, sender, receiver


@dataclass
class _Round:
    """One collective of one group under way: what its members have brought so far."""

    brought: dict[int, Tensor] = field(default_factory=dict)
    combined: Tensor | None = None
    left: int = 0


@dataclass
class Exchange:
    """What lies between the workers of one process."""

    mail: dict[Address, Tensor] = field(default_factory=dict)
    rounds: dict[tuple[Key, Group], _Round] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget everything under way, after a failure."""
        self.mail.clear()
        self.rounds.clear()


class _Letters:
    """Messages to come under one key: a tensor for each sender."""

    def __init__(self, posted: Posted, exchange: Exchange, worker: int, tensors: Mapping[int, Tensor]) -> None:
        self.posted = posted
        self.mail = exchange.mail
        self.tensors = {(posted.key, sender, worker): tensor for sender, tensor in tensors.items()}

    def ready(self) -> bool:
        return all(address in self.mail for address in self.tensors)

    def wait(self) -> None:
        for address, tensor in self.tensors.items():
            tensor.view(-1).copy_(self.mail.pop(address).view(-1))


class _Member:
    """One worker's part in a collective. ``finish`` writes its result from what all have brought, in their order."""

    def __init__(
        self, posted: Posted, exchange: Exchange, worker: int, tensor: Tensor, finish: Callable[[_Round], None]
    ) -> None:
        self.posted = posted
        self.exchange = exchange
        self.place = (posted.key, posted.peers)
        self.finish = finish
        self.round = exchange.rounds.setdefault(self.place, _Round())
        self.round.brought[worker] = tensor.clone()

    def ready(self) -> bool:
        return len(self.round.brought) == len(self.posted.peers)

    def wait(self) -> None:
        self.finish(self.round)
        self.round.left += 1
        if self.round.left == len(self.posted.peers):
            del self.exchange.rounds[self.place]


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def _combined(round_: _Round, kind: PartialKind, group: Group) -> Tensor:
    if round_.combined is None:
        total = round_.brought[group[0]]
        for member in group[1:]:
            total = _COMBINE[kind](total, round_.brought[member])
        round_.combined = total
    return round_.combined


class InlineComm:
    """One worker's side. See :class:`~superscaler.runtime.comm.Comm`."""

    ordered = False

    def __init__(self, exchange: Exchange, worker: int) -> None:
        self.exchange = exchange
        self.worker = worker

    def send(self, tensor: Tensor, peer: int, key: Key) -> None:
        self.exchange.mail[key, self.worker, peer] = tensor.clone(memory_format=torch.contiguous_format)

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        return _Letters(Posted("receive", key, (peer,)), self.exchange, self.worker, {peer: tensor})

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        def finish(round_: _Round) -> None:
            tensor.copy_(_combined(round_, kind, group))

        return _Member(Posted("all_reduce", key, group), self.exchange, self.worker, tensor, finish)

    def reduce_scatter(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        def finish(round_: _Round) -> None:
            out.copy_(_combined(round_, kind, group)[group.index(self.worker)])

        return _Member(Posted("reduce_scatter", key, group), self.exchange, self.worker, tensor, finish)

    def all_gather(self, out: Tensor, tensor: Tensor, group: Group, key: Key) -> Handle:
        def finish(round_: _Round) -> None:
            for row, member in zip(out, group, strict=True):
                row.copy_(round_.brought[member])

        return _Member(Posted("all_gather", key, group), self.exchange, self.worker, tensor, finish)

    def all_to_all(
        self, out: Tensor, tensor: Tensor, taken: list[int], given: list[int], group: Group, key: Key
    ) -> Handle:
        for piece, member in zip(tensor.split(given), group, strict=True):
            self.exchange.mail[key, self.worker, member] = piece.clone()
        pieces = dict(zip(group, out.split(taken), strict=True))
        return _Letters(Posted("all_to_all", key, group), self.exchange, self.worker, pieces)


def drive(runs: Mapping[int, Iterator[Handle]]) -> None:
    """Let workers take turns until all have run to their end. Raises :class:`WorkerError` if none can go on."""
    waiting: dict[int, Handle] = {}
    active = dict(runs)
    while active:
        moved = False
        for worker, run in list(active.items()):
            moved |= _advance(worker, run, active, waiting)
        if not moved:
            raise WorkerError(
                f"the job is stuck: workers {sorted(active)} all wait for each other",
                *(f"worker {w} waits for {waiting[w].posted}" for w in sorted(active)),
                hint="`superscaler check` on the plan",
            )


def _advance(
    worker: int, run: Iterator[Handle], active: dict[int, Iterator[Handle]], waiting: dict[int, Handle]
) -> bool:
    """Run one worker as far as it goes; whether it went anywhere."""
    moved = False
    while True:
        handle = waiting.get(worker)
        if handle is not None:
            if not handle.ready():
                return moved
            handle.wait()
        try:
            waiting[worker] = next(run)
        except StopIteration:
            del active[worker]
            return True
        moved = True
