"""Bodies: what the blocks of a role do, on what values hold rather than on numbers.

Each block is run once. The micro-batch stays a symbol: a value over micro-batches can be read at the block's own index
only, so what is true of one instance of the block is true of all. What a block does to values that outlive it comes out
as a list of events, for the pass over the order of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from superscaler.ir.check.ops import Held, Ops
from superscaler.ir.check.regions import Regions
from superscaler.ir.check.scope import Role
from superscaler.ir.check.sums import Domain, domains
from superscaler.ir.program import Collective, Recv, Send


class Act(IntEnum):
    """What is done to an instance of a value."""

    READ = 0
    WRITE = 1
    ADD = 2


class Event(NamedTuple):
    """What a block does to an instance of a value that outlives it. ``slot``: the value at its fixed time indices.

    ``bits``: the points that an ADD covers, shifted by the micro-batch if it ``moves``.
    """

    act: Act
    slot: int
    bits: int = 0
    moves: bool = False


Slot = tuple[int, tuple[int, ...]]  # value, indices along its time axes except micro-batches


@dataclass
class Body:
    """What a block does, as the later passes see it. ``reads``: state values. ``commits``: state values, in order.
    ``comms``: numbers of its communications, in order."""

    events: list[Event] = field(default_factory=list)
    reads: set[int] = field(default_factory=set)
    commits: list[int] = field(default_factory=list)
    comms: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Meeting:
    """One role's part in a communication: what it brings and what it gets."""

    role: Role
    block: int
    step: Collective | Send | Recv
    src: Held | None
    dst: Held | None


class Bodies:
    """What is known of one role's values while its blocks are run in the order in which they first execute."""

    def __init__(self, role: Role, ops: Ops, regions: Regions) -> None:
        self.role = role
        self.scope = role.scope
        self.ops = ops
        self.regions = regions
        self.domains: dict[int, Domain] = domains(role)
        self.meetings: list[Meeting] = []
        self.slots: list[Slot] = []
        self._numbers: dict[Slot, int] = {}
        self.origins: dict[int, int] = {}
        self.addend_origins: dict[int, dict[int, int]] = {}

    def slot(self, slot: Slot) -> int:
        """The number of a slot."""
        found = self._numbers.get(slot)
        if found is None:
            found = self._numbers[slot] = len(self.slots)
            self.slots.append(slot)
        return found

    def full(self, value: int) -> int:
        """The bits of a complete value."""
        return self.domains[value].full if value in self.domains else 1

    def held(self, value: int) -> Held:
        """What a value holds by its declaration, with the origin found where it was written."""
        v = self.role.program.values[value]
        origin = self.origins.get(value, 0)
        if v.layout.partial and value in self.addend_origins:
            origin = self.scope.origin("sum", *sorted(self.addend_origins[value].items()))
        return Held(v.tensor, v.layout, self.role.terms[value], origin)


def joint_communications(done: Mapping[int, Mapping[int, Body]]) -> dict[int, dict[int, list[int]]]:
    """Role -> block -> its communications, in order, that other roles take part in as well."""
    roles: dict[int, set[int]] = {}
    for role, bodies in done.items():
        for body in bodies.values():
            for comm in body.comms:
                roles.setdefault(comm, set()).add(role)
    joint = {comm for comm, members in roles.items() if len(members) > 1}
    return {
        role: {number: [comm for comm in body.comms if comm in joint] for number, body in bodies.items()}
        for role, bodies in done.items()
    }
