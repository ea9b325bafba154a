"""The order of a role's tasks: every value is complete when it is read, there when it is read, and gone only once.

Values to which all blocks do the same things, and which are released together, are followed as one: what a task costs
here does not grow with the activations it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from superscaler.ir.check.bodies import Act, Bodies, Body, Event
from superscaler.ir.check.fault import Fault, FaultKind, fault
from superscaler.ir.check.scope import Role
from superscaler.ir.check.sums import missing
from superscaler.ir.program import Item


class Life(NamedTuple):
    """An instance of a class of values lives from the task ``born`` to the task ``died``, both included."""

    kin: int
    microbatch: int
    born: int
    died: int


@dataclass
class History:
    """What the order of tasks does to values. ``kin``: classes of slots that live alike. ``lives`` in order of death.
    ``left``: instances that are there at the end, with the points they have."""

    kin: list[list[int]] = field(default_factory=list)
    kin_of: dict[int, int] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)
    left: dict[tuple[int, int], int] = field(default_factory=dict)
    commits: dict[int, int] = field(default_factory=dict)


def check_order(role: Role, bodies: Bodies, done: Mapping[int, Body]) -> History:
    """Plays the tasks of a role through. Raises a :class:`Fault` at the first one that is wrong."""
    return _Play(role, bodies, done).run()


class _Play:
    def __init__(self, role: Role, bodies: Bodies, done: Mapping[int, Body]) -> None:
        self.role = role
        self.bodies = bodies
        self.done = done
        self.history = History()
        self.events: dict[int, list[Event]] = {}
        self.frees: list[tuple[int, ...]] = []
        self._classify()
        first = [bodies.slots[slots[0]][0] for slots in self.history.kin]
        self.full = [bodies.full(value) for value in first]
        self.per_microbatch = [bool(role.scope.micro in role.program.values[value].over) for value in first]
        self.points: dict[tuple[int, int], int] = {}
        self.ready: dict[tuple[int, int], tuple[int, int]] = {}  # planned time, number of the task
        self.born: dict[tuple[int, int], int] = {}
        self.freed: set[tuple[int, int]] = set()

    def _classify(self) -> None:
        """Slots of equal fates form a class; each class is followed through its first slot."""
        fates: dict[int, list[object]] = {slot: [] for slot in range(len(self.bodies.slots))}
        for number, body in self.done.items():
            for event in body.events:
                fates[event.slot].append((number, event.act, event.bits, event.moves))
        released: dict[int, list[int]] = {}
        for number, values in enumerate(self.role.program.frees):
            for value in values:
                released.setdefault(value, []).append(number)
        results = {*self.role.program.outputs.values(), *self.role.program.gradients.values()}
        classes: dict[object, int] = {}
        for slot, fate in fates.items():
            value = self.bodies.slots[slot][0]
            over = self.role.scope.micro in self.role.program.values[value].over
            key = (over, self.bodies.full(value), tuple(fate), tuple(released.get(value, ())), value in results)
            kin = classes.setdefault(key, len(classes))
            if kin == len(self.history.kin):
                self.history.kin.append([])
            self.history.kin[kin].append(slot)
            self.history.kin_of[slot] = kin
        leaders = {slots[0]: kin for kin, slots in enumerate(self.history.kin)}
        for number, body in self.done.items():
            found = [event._replace(slot=leaders[event.slot]) for event in body.events if event.slot in leaders]
            self.events[number] = _condensed(found)
        self._classify_frees(released)

    def _classify_frees(self, released: Mapping[int, list[int]]) -> None:
        sets: list[dict[int, None]] = [{} for _ in self.role.program.frees]
        self.unknown: dict[int, int] = {}
        known = {value for value, _ in self.bodies.slots}
        for value, numbers in released.items():
            for number in numbers:
                if value not in known:
                    self.unknown.setdefault(number, value)
        for slot, kin in self.history.kin_of.items():
            for number in released.get(self.bodies.slots[slot][0], ()):
                sets[number][kin] = None
        self.frees = [tuple(found) for found in sets]

    # --- playing ----------------------------------------------------------------------------------------------------

    def run(self) -> History:
        for number, item in enumerate(self.role.program.order):
            self._item(number, item)
            if item.frees >= 0:
                self._free(number, item)
        history = self.history
        last = len(self.role.program.order)
        for key, points in self.points.items():
            history.left[key] = points
            history.lives.append(Life(key[0], key[1], self.born[key], last))
        return history

    def _key(self, kin: int, item: Item) -> tuple[int, int]:
        return kin, item.microbatch if self.per_microbatch[kin] else 0

    def _item(self, number: int, item: Item) -> None:
        body = self.done[item.block]
        events = self.events[item.block]
        self.role.scope.spend(1 + len(events) + (len(self.frees[item.frees]) if item.frees >= 0 else 0))
        if self.history.commits and not self.history.commits.keys().isdisjoint(body.reads):
            state = min(self.history.commits.keys() & body.reads)
            raise self._wrong(
                "stale read", f"{self.role.value_text(state)} is read after task {self.history.commits[state]} "
                "committed its new content", item, right="all reads of the old content before the commit",
            )  # fmt: skip
        for act, kin, bits, moves in events:
            key = self._key(kin, item)
            if act == Act.READ:
                self._read(key, number, item)
            elif act == Act.WRITE:
                if key in self.points:
                    raise self._wrong("written twice", self._text(key), item)
                self.points[key] = self.full[kin]
                self.born[key] = number
                self.ready[key] = (item.end, number)
            else:
                self._add(key, bits << item.microbatch if moves else bits, number, item)
        for state in body.commits:
            if state in self.history.commits:
                raise self._wrong("duplicated commit", self.role.value_text(state), item)
            self.history.commits[state] = number

    def _read(self, key: tuple[int, int], number: int, item: Item) -> None:
        have = self.points.get(key)
        if have is None:
            raise self._absent(key, item)
        if have != self.full[key[0]]:
            value = self.bodies.slots[self.history.kin[key[0]][0]][0]
            raise self._wrong(
                "reduction too early", f"{self._text(key)} is read", item,
                why=missing(self.bodies.domains[value], have), right="all contributions before the first read",
            )  # fmt: skip
        end, writer = self.ready[key]
        if end > item.start and writer != number:
            raise self._wrong(
                "task before its input", f"task {number} starts at {item.start} us, but {self._text(key)} is there at "
                f"{end} us only", item, right=f"a start at {end} us or later",
            )  # fmt: skip

    def _add(self, key: tuple[int, int], bits: int, number: int, item: Item) -> None:
        have = self.points.get(key)
        if have is None:
            if key in self.freed:
                raise self._absent(key, item)  # a sum starts once per run: this term would meet what lies there now
            have = 0
            self.born[key] = number
        if have & bits:
            raise self._wrong("counted twice", f"a term of {self._text(key)}", item, right="each term once")
        self.points[key] = have | bits
        self.ready[key] = (max(item.end, self.ready[key][0]) if have else item.end, number)

    def _free(self, number: int, item: Item) -> None:
        if item.frees in self.unknown:
            value = self.unknown[item.frees]
            kind: FaultKind = "freed result" if value in self.role.state_of else "double free"
            raise self._wrong(kind, f"{self.role.value_text(value)} is released, and is never in a buffer", item)
        for kin in self.frees[item.frees]:
            key = self._key(kin, item)
            if self.points.pop(key, None) is None:
                why = "it was released before" if key in self.freed else "it is not there yet"
                raise self._wrong("double free", f"{self._text(key)} is released", item, why=why)
            self.freed.add(key)
            self.history.lives.append(Life(kin, key[1], self.born[key], number))

    # --- faults -----------------------------------------------------------------------------------------------------

    def _absent(self, key: tuple[int, int], item: Item) -> Fault:
        if key in self.freed:
            return self._wrong(
                "read after free", f"{self._text(key)} is used after it was released", item, right="a later release"
            )
        return self._wrong(
            "missing value", f"{self._text(key)} is read", item,
            why="nothing has written it yet" if self._written(key[0]) else "nothing on this worker writes it",
            right="the task that writes it, earlier",
        )  # fmt: skip

    def _written(self, kin: int) -> bool:
        return any(e.slot == kin and e.act != Act.READ for events in self.events.values() for e in events)

    def _text(self, key: tuple[int, int]) -> str:
        slots = self.history.kin[key[0]]
        value, indices = self.bodies.slots[slots[0]]
        at = f" at index {list(indices)}" if indices else ""
        return self.role.value_text(value) + at + (f" (and {len(slots) - 1} like it)" if len(slots) > 1 else "")

    def _wrong(self, kind: FaultKind, what: str, item: Item, *, why: str = "", right: str | None = None) -> Fault:
        place = self.role.place(item.block, item.microbatch)
        return fault(kind, what, place, *([why] if why else []), right=right)


def _condensed(events: list[Event]) -> list[Event]:
    """The events of a block without reads that repeat an earlier event's knowledge."""
    found: list[Event] = []
    settled: set[int] = set()
    for event in events:
        if event.act == Act.READ and event.slot in settled:
            continue
        if event.act == Act.ADD:
            settled.discard(event.slot)
        else:
            settled.add(event.slot)
        found.append(event)
    return found
