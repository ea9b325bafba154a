"""Replay: the Programs of an entry run in time as workers run them, each task as long as the plan says.

A worker computes one task after another, in the order of its Program. Communication is posted at its place in that
order, which takes the worker a moment, and waited for where its values are touched; a transfer begins when both ends
have posted it and the one before it on its link is over. Tasks that communicate inside end together. Workers of one
role act alike, so roles are replayed.

All of that is fixed precedence: every task has a moment at which it is *reached* and one at which it is *over*, each
the maximum of earlier ones plus a duration, so one pass in topological order gives all times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from superscaler.errors import ScheduleError
from superscaler.ir.entry import Entry
from superscaler.ir.program import Block, Collective, Item, Program, Recv, Send
from superscaler.transforms.usage import reads, writes

Node = tuple[int, int]  # role, item
Durations = Callable[[int, Item], int]
Orders = Sequence[Sequence[int]]
Key = tuple[int, int]  # value, micro-batch
Instance = tuple[int, int]  # communication, micro-batch


@dataclass(frozen=True)
class Replay:
    """Per role and item: when it begins to run and when it is over, in microseconds, and the task it waited for."""

    starts: list[list[int]]
    ends: list[list[int]]
    causes: list[list[Node | None]]

    def critical(self) -> list[Node]:
        """The chain of tasks, first to last, of which each waited for the one before; the last is the last of all."""
        latest = [(end, r, i) for r, ends in enumerate(self.ends) for i, end in enumerate(ends)]
        if not latest:
            return []
        _, role, item = max(latest)
        chain: list[Node] = [(role, item)]
        while (cause := self.causes[chain[-1][0]][chain[-1][1]]) is not None:
            chain.append(cause)
        return chain[::-1]


def at_once(_role: int, _item: Item) -> int:
    """No time at all."""
    return 0


def replay(
    entry: Entry,
    durations: Durations | None = None,
    *,
    posts: Durations = at_once,
    finishes: Durations = at_once,
    orders: Orders | None = None,
) -> Replay:
    """Run the entry's Programs in time. ``durations``: microseconds of a role's item, instead of what the plan states.

    ``posts``: microseconds of a worker's own time that posting a role's item, one end of a communication, takes;
    ``finishes``: those before an item that computes, beside posts. ``orders``: by role, the order in which a worker
    begins the items, where it is not that of the Program.

    Raises :class:`ScheduleError` if the Programs wait for each other in a circle, which those of a checked plan do not.
    """
    moments = Moments(entry, durations or (lambda _, item: item.end - item.start), posts, finishes)
    for role, program in enumerate(entry.programs):
        moments.add(role, program, range(len(program.order)) if orders is None else orders[role])
    moments.meet()
    return moments.run()


@dataclass(frozen=True)
class _Uses:
    """What a block has to do with communication: its numbers, and what it touches of what communication moves."""

    comms: tuple[int, ...]
    receives: bool
    brings: tuple[int, ...]
    sends: tuple[int, ...]
    touches: tuple[int, ...]
    overwrites: tuple[int, ...]
    link: str


@dataclass
class Moments:
    """The moments of all tasks, two each (reached: even, over: odd), then those at which all members of a collective
    have come; and what each moment comes after, with the delay between."""

    entry: Entry
    durations: Durations
    posts: Durations
    finishes: Durations = at_once
    nodes: list[Node] = field(default_factory=list[Node])
    lengths: list[int] = field(default_factory=list[int])
    after: list[list[tuple[int, int]]] = field(default_factory=list[list[tuple[int, int]]])
    met: dict[Instance, list[tuple[int, str]]] = field(default_factory=dict[Instance, list[tuple[int, str]]])

    def add(self, role: int, program: Program, order: Sequence[int]) -> None:
        """The tasks of a role, in order."""
        uses = _uses(self.entry, program)
        clock: list[tuple[int, int]] = []  # the moment from which the worker is free, with the delay after it
        moved: dict[Key, list[int]] = {}
        sent: dict[Key, list[int]] = {}
        links: dict[str, int] = {}
        for number in order:
            item = program.order[number]
            block, use = program.blocks[item.block], uses[item.block]
            reached, over = self._task((role, number), self.durations(role, item))
            waits = self._found(program, block, item, use.touches, moved)
            waits += self._found(program, block, item, use.overwrites, sent)
            own = self.finishes(role, item) if block.lane == "compute" else 0
            self.after[reached] += [(free, delay + own) for free, delay in clock]
            self.after[reached] += [(w, 0) for w in dict.fromkeys(waits)]
            for comm in use.comms:
                how = "compute" if block.lane == "compute" else "receive" if use.receives else "send"
                self.met.setdefault((comm, item.microbatch), []).append((over, how))
            clock = [(over, 0) if block.lane == "compute" else (reached, self.posts(role, item))]
            if block.lane == "compute":
                continue
            if not use.receives:
                if use.link in links:
                    self.after[over].append((links[use.link], self.lengths[over // 2]))
                links[use.link] = over
            for key in self._keys(program, block, item, use.brings):
                moved.setdefault(key, []).append(over)
            for key in self._keys(program, block, item, use.sends):
                sent.setdefault(key, []).append(over)

    def _task(self, node: Node, length: int) -> tuple[int, int]:
        reached = 2 * len(self.nodes)
        self.nodes.append(node)
        self.lengths.append(length)
        self.after += [[], [(reached, length)]]
        return reached, reached + 1

    def _found(
        self, program: Program, block: Block, item: Item, values: Iterable[int], moved: dict[Key, list[int]]
    ) -> list[int]:
        return [w for key in self._keys(program, block, item, values) for w in moved.get(key, ())]

    def _keys(self, program: Program, block: Block, item: Item, values: Iterable[int]) -> list[Key]:
        """The instances of values that an item touches: of its micro-batch, or all if it is not of one."""
        found: list[Key] = []
        for value in values:
            if not program.values[value].over:
                found.append((value, -1))
            elif block.over:
                found.append((value, item.microbatch))
            else:
                found += [(value, j) for j in range(self.entry.microbatches)]
        return found

    def meet(self) -> None:
        """Tie the ends of every communication together."""
        for ends in self.met.values():
            receivers = [over for over, how in ends if how == "receive"]
            senders = [over for over, how in ends if how == "send"]
            for s, r in product(senders, receivers):
                self.after[s].append((r - 1, self.lengths[s // 2]))
                self.after[r].append((s, 0))
            together = [over for over, how in ends if how == "compute" or not receivers]
            if len(together) > 1:
                self._gather(together)

    def _gather(self, members: list[int]) -> None:
        """The members of a collective run once all of them have been reached."""
        self.after.append([(over - 1, 0) for over in members])
        for over in members:
            self.after[over].append((len(self.after) - 1, self.lengths[over // 2]))

    def run(self) -> Replay:
        times, causes = [0] * len(self.after), [-1] * len(self.after)
        for moment in self._order():
            for earlier, delay in self.after[moment]:
                if times[earlier] + delay > times[moment]:
                    times[moment], causes[moment] = times[earlier] + delay, earlier
        counts = [len(p.order) for p in self.entry.programs]
        found = Replay([[0] * n for n in counts], [[0] * n for n in counts], [[None] * n for n in counts])
        for task, (role, item) in enumerate(self.nodes):
            over = 2 * task + 1
            found.ends[role][item] = times[over]
            found.starts[role][item] = times[over] - self._length(over)
            found.causes[role][item] = self._cause(task, causes)
        return found

    def _length(self, over: int) -> int:
        """How long a task runs; a receive runs as long as the send that it is of."""
        sends = [self.lengths[e // 2] for e, delay in self.after[over] if e % 2 and not delay]
        return max([self.lengths[over // 2], *sends])

    def _cause(self, task: int, causes: list[int]) -> Node | None:
        moment = 2 * task + 1
        while causes[moment] >= 0:
            moment = causes[moment]
            if moment % 2 and moment < 2 * len(self.nodes) and moment // 2 != task:
                return self.nodes[moment // 2]
        return None

    def _order(self) -> list[int]:
        later: list[list[int]] = [[] for _ in self.after]
        waiting = [len(before) for before in self.after]
        for moment, before in enumerate(self.after):
            for earlier, _ in before:
                later[earlier].append(moment)
        ready = [moment for moment, count in enumerate(waiting) if not count]
        for moment in ready:
            for other in later[moment]:
                waiting[other] -= 1
                if not waiting[other]:
                    ready.append(other)
        if len(ready) < len(self.after):
            role, item = self.nodes[next(m for m, count in enumerate(waiting) if count) // 2 % len(self.nodes)]
            program = self.entry.programs[role]
            name = program.blocks[program.order[item].block].name
            raise ScheduleError(f"the Programs wait for each other in a circle, at {name} of workers {program.workers}")
        return ready


def _uses(entry: Entry, program: Program) -> list[_Uses]:
    apart = [step for block in program.blocks if block.lane != "compute" for step in block.steps]
    moved = {v for step in apart for v in writes(step)}
    sent = {v for step in apart for v in reads(step)}
    return [_uses_of(entry, block, moved, sent) for block in program.blocks]


def _uses_of(entry: Entry, block: Block, moved: set[int], sent: set[int]) -> _Uses:
    read = {v for step in block.steps for v in reads(step)}
    written = {v for step in block.steps for v in writes(step)}
    comms = [step.comm for step in block.steps if isinstance(step, Send | Recv | Collective)]
    receives = any(isinstance(step, Recv) for step in block.steps)
    routes = [entry.routes[step.route].destination.mesh for step in block.steps if isinstance(step, Send)]
    apart = block.lane != "compute"
    return _Uses(
        tuple(comms),
        receives,
        tuple(written) if apart else (),
        tuple(read) if apart else (),
        tuple((read | (set() if apart else written)) & moved),
        tuple(written & sent),
        f"{block.lane}>{routes[0] if routes else ''}",
    )
