"""Mail: which messages of a plan go by mailboxes, because both ends are on one machine, without a GPU.

Every message that a plan has gets a mailbox of its own, so that none is ever full: before it is sent again, in the next
run, it has been taken.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from superscaler.ir.plan import Entry, Plan
from superscaler.ir.program import Program, Recv, Send
from superscaler.runtime.binding import program_of
from superscaler.runtime.comm import Key
from superscaler.runtime.mailbox import Mailbox, Shelf

Ends = tuple[Key, int]  # a message of a worker: its key, and who is at its other end


@dataclass
class Mail:
    """The mailboxes of one worker: of what it receives, and of what it sends. ``gone``: whether a peer has ended."""

    incoming: dict[Ends, Mailbox] = field(default_factory=dict[Ends, Mailbox])
    outgoing: dict[Ends, Mailbox] = field(default_factory=dict[Ends, Mailbox])
    gone: dict[int, Callable[[], bool]] = field(default_factory=dict[int, Callable[[], bool]])


@dataclass(frozen=True)
class _Offer:
    """Where a worker's mailboxes are."""

    machine: str
    process: int
    descriptor: int


def received(plan: Plan, worker: int) -> list[Ends]:
    """The messages that a worker receives, in one order for all who ask, but those that a run has more than once."""
    found: dict[Ends, None] = {}
    twice: set[Ends] = set()
    for entry in plan.entries.values():
        program = program_of(entry, worker)
        seen = Counter() if program is None else Counter(_received(entry, program, worker))
        found |= dict.fromkeys(seen)
        twice |= {ends for ends, times in seen.items() if times > 1}
    return [ends for ends in found if ends not in twice]


def _received(entry: Entry, program: Program, worker: int) -> Iterable[Ends]:
    steps = [[step for step in block.steps if isinstance(step, Recv)] for block in program.blocks]
    senders = {
        step.route: {p.source for p in entry.routes[step.route].pieces if p.destination == worker != p.source}
        for found in steps
        for step in found
    }
    for item in program.order:
        for step in steps[item.block]:
            for sender in sorted(senders[step.route]):
                yield (step.comm, item.microbatch), sender


def receivers(plan: Plan, worker: int) -> set[int]:
    """To whom a worker sends."""
    found: set[int] = set()
    for entry in plan.entries.values():
        program = program_of(entry, worker)
        blocks = () if program is None else program.blocks
        routes = {step.route for block in blocks for step in block.steps if isinstance(step, Send)}
        found |= {p.destination for route in routes for p in entry.routes[route].pieces if p.source == worker}
    return found - {worker}


def neighbours(worker: int, workers: int, keys: Sequence[Key]) -> Mail:
    """Mailboxes for whatever two neighbours in a circle of workers can tell each other under these keys."""
    beside = {w: sorted({(w - 1) % workers, (w + 1) % workers} - {w}) for w in range(workers)}
    ends = {w: [(key, sender) for sender in beside[w] for key in keys] for w in range(workers)}
    return deliver(worker, ends[worker], {w: ends[w] for w in beside[worker]})


def deliver(worker: int, mine: Sequence[Ends], theirs: Mapping[int, Sequence[Ends]]) -> Mail:
    """Mailboxes for messages between workers of one machine: called by all workers at once.

    ``mine``: what this worker receives. ``theirs``: what every worker receives to which it sends.
    """
    shelf, descriptor = _shelf(len(mine))
    try:
        offers = _of_all(_Offer(_machine(), os.getpid(), descriptor))
        opened = {w: found for w, ends in theirs.items() if (found := _open(offers[w], len(ends))) is not None}
        reached = _of_all([*opened])
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    here = {sender for sender, found in enumerate(reached) if worker in found}
    boxes = {} if shelf is None else {e: shelf.mailbox(n) for n, e in enumerate(mine) if e[1] in here}
    outgoing = {
        (key, receiver): found.mailbox(number)
        for receiver, found in opened.items()
        for number, (key, sender) in enumerate(theirs[receiver])
        if sender == worker
    }
    return Mail(boxes, outgoing, {sender: _gone(offers[sender].process) for sender in here})


def _shelf(count: int) -> tuple[Shelf | None, int]:
    with suppress(OSError):
        if count and _machine():
            return Shelf.make(count)
    return None, -1


def _open(offer: _Offer, count: int) -> Shelf | None:
    with suppress(OSError):
        if offer.descriptor >= 0 and offer.machine == _machine():
            return Shelf.open(offer.process, offer.descriptor, count)
    return None


def _machine() -> str:
    """What workers have in common that see each other's processes; nothing where that cannot be told."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _of_all(mine: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _gone(number: int) -> Callable[[], bool]:
    """Whether a process has ended."""
    try:
        process = psutil.Process(number)
    except psutil.NoSuchProcess:
        return lambda: True

    def gone() -> bool:
        with suppress(psutil.NoSuchProcess):
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        return True

    return gone
