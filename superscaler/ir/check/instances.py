"""Reading and writing instances of values inside one block."""

from __future__ import annotations

from collections.abc import Iterable

from superscaler.ir.check.bodies import Act, Bodies, Body, Event, Slot
from superscaler.ir.check.fault import Fault, FaultKind, Place, fault
from superscaler.ir.check.moves import mismatch
from superscaler.ir.check.ops import Held
from superscaler.ir.check.sums import Points, missing
from superscaler.ir.program import Accumulate, At, Block, Call, Collect, Commit, Send, Step


class Instances:
    """One block being run: what its own values hold so far, and what it did to those of others."""

    def __init__(self, bodies: Bodies, number: int) -> None:
        self.bodies = bodies
        self.role = bodies.role
        self.scope = bodies.scope
        self.number = number
        self.block: Block = bodies.role.program.blocks[number]
        self.body = Body()
        self.local: dict[Slot, int] = {}
        self.views: dict[int, frozenset[int]] = {}  # value of this block -> the state that it may be a view of
        self.step: Step | None = None

    def wrong(self, kind: FaultKind, what: str, *why: str, right: str | None = None) -> Fault:
        """A fault at the current step."""
        return fault(kind, what, self.place(), *why, right=right)

    def place(self) -> Place:
        """Where a fault of the step at hand is."""
        return self.role.place(self.number, step=self.step)

    def name(self, value: int) -> str:
        """A value as messages call it."""
        return self.role.value_text(value)

    def times(self, at: At) -> frozenset[str]:
        """The time axes at whose indices a step runs."""
        return frozenset((*self.block.over, *(axis for axis, _ in at)))

    def slot(self, value: int, at: At) -> Slot:
        """The instance that a step means; raises unless the step runs at an index of each of the value's axes."""
        fixed = dict(at)
        indices: list[int] = []
        for axis in self.role.program.values[value].over:
            if axis in self.block.over:
                continue
            if axis not in fixed:
                raise self.wrong(
                    "wrong time index", f"{self.name(value)} is used at no index of {axis!r}",
                    right=f"a block over {axis!r}, or a step at an index of it",
                )  # fmt: skip
            indices.append(fixed[axis])
        return value, tuple(indices)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, value: int, at: At = ()) -> Held:
        """What a step finds in a value."""
        slot = self.slot(value, at)
        if value in self.role.host:
            raise self.wrong("host value", f"{self.name(value)} lies in host memory", right="an offload to device")
        if value in self.role.state_of:
            self._read_state(value)
        elif value in self.role.shared:
            self.read_shared(slot)
        elif value not in self.role.inputs:
            self._read_local(value, slot)
        return self.bodies.held(value)

    def read_hosted(self, value: int) -> Held:
        """What an offload finds in host memory."""
        if value in self.role.state_of:
            self._read_state(value)
        else:
            self.read_shared(self.slot(value, ()))
        return self.bodies.held(value)

    def read_shared(self, slot: Slot) -> None:
        """Note that the block reads an instance that outlives it."""
        self.body.events.append(Event(Act.READ, self.bodies.slot(slot)))

    def _read_state(self, value: int) -> None:
        if value in self.body.commits:
            raise self.wrong(
                "stale read", f"{self.name(value)} is read after its new content was committed",
                right="all reads of the old content before the commit",
            )  # fmt: skip
        self.body.reads.add(value)

    def state_behind(self, value: int) -> frozenset[int]:
        """The state tensors whose storage a value of this block may share."""
        return frozenset((value,)) if value in self.role.state_of else self.views.get(value, frozenset())

    def view(self, value: int, bases: Iterable[int]) -> None:
        """``value`` may be a view of ``bases``, and so of the state behind them."""
        if value not in self.role.shared:
            self.views[value] = frozenset[int]().union(*map(self.state_behind, bases))

    def _read_local(self, value: int, slot: Slot) -> None:
        have = self.local.get(slot)
        behind = self.views.get(value, frozenset()) & set(self.body.commits)
        if behind:
            raise self.wrong(
                "stale read", f"{self.name(value)}, a view of {self.name(min(behind))}, is read after the commit",
                right="all reads of the old content before the commit",
            )  # fmt: skip
        if have is None and any(value in written(step) for b in self.role.program.blocks for step in b.steps):
            raise self.wrong(
                "no buffer", f"{self.name(value)} is read",
                "it is written in another task or at another index, and has no buffer that outlives that",
            )  # fmt: skip
        if have is None:
            raise self.wrong("missing value", f"{self.name(value)} is read", "nothing on this worker writes it")
        if have != self.bodies.full(value):
            domain = self.bodies.domains[value]
            raise self.wrong("reduction too early", f"{self.name(value)} is read", missing(domain, have))

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, value: int, at: At, held: Held) -> None:
        """A step's result; raises unless the value is declared to hold just that."""
        self._declared(value, held)
        slot = self.slot(value, at)
        self.writable(value)
        if value in self.bodies.domains:
            raise self.wrong("written twice", f"{self.name(value)} is formed over time, and also written whole")
        if value in self.role.shared:
            self.body.events.append(Event(Act.WRITE, self.bodies.slot(slot), 1))
        elif slot in self.local:
            raise self.wrong("written twice", self.name(value))
        else:
            self.local[slot] = 1
        if self.bodies.origins.setdefault(value, held.origin) != held.origin:
            raise self.wrong("mixed partials", f"{self.name(value)} is cut into terms in two different ways")

    def add(self, into: int, slot: Slot, found: Points) -> None:
        """A contribution to a value that is formed over time."""
        if into in self.role.shared:
            self.body.events.append(Event(Act.ADD, self.bodies.slot(slot), found.bits, found.moves))
            return
        if found.moves:
            raise self.wrong(
                "no buffer", f"{self.name(into)} is formed over micro-batches, and has no buffer that outlives one"
            )
        have = self.local.get(slot, 0)
        if have & found.bits:
            raise self.wrong("counted twice", f"a term of {self.name(into)}")
        self.local[slot] = have | found.bits

    def writable(self, value: int) -> None:
        """Raises for inputs and state, which no step writes in place."""
        if value in self.role.state_of or value in self.role.inputs:
            what = "a state tensor" if value in self.role.state_of else "an input"
            raise self.wrong(
                "stale read", f"{self.name(value)} is {what} and is written in place",
                right="a value of its own, then a commit",
            )  # fmt: skip

    def _declared(self, value: int, held: Held) -> None:
        v = self.role.program.values[value]
        if v.tensor != held.tensor:
            raise self.wrong(
                "wrong tensor", f"{self.name(value)} is given {held.tensor!r}", right=f"tensor {v.tensor!r}"
            )
        if self.role.terms[value] != held.terms:
            raise self.wrong("not a term", f"{self.name(value)} is given other terms of its sum")
        why = mismatch(held.layout, v.layout)
        if why is not None:
            raise self.wrong(
                why[0], f"{self.name(value)} is written from {held.layout}", why[1], right=f"a value as {held.layout}"
            )


def written(step: Step) -> tuple[int, ...]:
    """The values that a step writes."""
    match step:
        case Call():
            return step.outs
        case Accumulate() | Collect():
            return (step.into,)
        case Commit() | Send():
            return ()
        case _:
            return (step.dst,)
