"""Deadlock: the communications are played through under rendezvous.

Each worker posts its communications in the order of its Program, and one takes place when it stands first with all of
its members. What a worker waits for elsewhere (a task that reads what was received, memory that a send still uses) it
posted earlier, so the order of posts is all that matters. There is no choice, so one play decides. Workers of one role
play as one; if that gets stuck, workers play for themselves, since roles may wait in a circle where workers do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from superscaler.ir.check.bodies import Body, joint_communications
from superscaler.ir.check.fault import Fault, fault
from superscaler.ir.check.scope import Role, Scope
from superscaler.ir.program import Collective, Recv, Route, Send

Meet = tuple[int, int, int]  # communication, micro-batch, and which of its groups that meet apart (0: all are one)


def check_deadlock(scope: Scope, bodies: Mapping[int, Mapping[int, Body]]) -> None:
    """Raises a :class:`Fault` with the circle of waiting workers. ``bodies``: role -> block -> what it does."""
    joint = joint_communications(bodies)
    if play({role.index: _queue(role, joint[role.index]) for role in scope.roles}) is None:
        return  # what a role does alone cannot close a circle
    every = {r: {number: body.comms for number, body in found.items()} for r, found in bodies.items()}
    queues = {role.index: _queue(role, every[role.index]) for role in scope.roles}
    apart = _Apart(scope)
    single = {
        worker: [meet for post in queues[role.index] if (meet := apart.of(post, worker)) is not None]
        for role in scope.roles
        for worker in role.workers
    }
    stuck = play(single)
    if stuck is not None:
        raise _circle(scope, single, stuck)


def _queue(role: Role, comms: Mapping[int, Sequence[int]]) -> list[Meet]:
    """The posts of a role in order; sending and receiving parts of one transfer, posted in a row, are one post."""
    queue: list[Meet] = []
    for item in role.program.order:
        role.scope.spend(len(comms[item.block]))
        for comm in comms[item.block]:
            post = (comm, item.microbatch, 0)
            if not queue or queue[-1] != post:
                queue.append(post)
    return queue


def play(queues: Mapping[int, Sequence[Meet]]) -> dict[int, int] | None:
    """None if all queues are played to their end, else how far each one came."""
    members: dict[Meet, list[int]] = {}
    for player, queue in queues.items():
        for meet in queue:
            members.setdefault(meet, []).append(player)
    position = dict.fromkeys(queues, 0)
    there: dict[Meet, int] = {}
    ready: list[Meet] = []

    def arrive(player: int) -> None:
        queue, at = queues[player], position[player]
        if at < len(queue):
            meet = queue[at]
            there[meet] = there.get(meet, 0) + 1
            if there[meet] == len(members[meet]):
                ready.append(meet)

    for player in queues:
        arrive(player)
    while ready:
        for player in members[ready.pop()]:
            position[player] += 1
            arrive(player)
    done = all(position[player] == len(queue) for player, queue in queues.items())
    return None if done else position


class _Apart:
    """Which workers of a communication really meet: a group of a collective, or those whom pieces connect."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.known: dict[int, dict[int, int]] = {}
        self.steps = {
            step.comm: step
            for role in scope.roles
            for block in role.program.blocks
            for step in block.steps
            if isinstance(step, Collective | Send | Recv)
        }

    def of(self, post: Meet, worker: int) -> Meet | None:
        comm, microbatch, _ = post
        if comm not in self.known:
            self.known[comm] = self._groups(comm)
        group = self.known[comm].get(worker)
        return None if group is None else (comm, microbatch, group)

    def _groups(self, comm: int) -> dict[int, int]:
        step = self.steps[comm]
        if isinstance(step, Collective):
            groups = self.scope.entry.groupings[step.grouping].groups
            return {worker: number for number, group in enumerate(groups) for worker in group}
        return connected(self.scope.entry.routes[step.route])


def connected(route: Route) -> dict[int, int]:
    """Worker -> a number equal for all whom the pieces of a route connect; those with no piece have none."""
    parent: dict[int, int] = {}

    def root(worker: int) -> int:
        while parent.setdefault(worker, worker) != worker:
            parent[worker] = parent[parent[worker]]
            worker = parent[worker]
        return worker

    for piece in route.pieces:
        if piece.source != piece.destination:
            parent[root(piece.source)] = root(piece.destination)
    return {worker: root(worker) for worker in list(parent)}


def _circle(scope: Scope, queues: Mapping[int, Sequence[Meet]], position: dict[int, int]) -> Fault:
    """The circle of workers that wait for each other, as a grid of what each would post next."""
    waiting = {w: queue[position[w]] for w, queue in queues.items() if position[w] < len(queue)}
    members: dict[Meet, list[int]] = {}
    for worker, queue in queues.items():
        for meet in queue:
            members.setdefault(meet, []).append(worker)
    path: list[int] = []
    worker = next(iter(waiting))
    while worker not in path:
        path.append(worker)
        meet = waiting[worker]
        late = [other for other in members[meet] if waiting.get(other) != meet]
        following = next((other for other in late if other in waiting), None)
        if following is None:  # it comes back to a communication that is over, with itself or another
            break
        worker = following
    circle = path[path.index(worker) :] if worker in path else path
    name = _Names(scope)
    rows = [
        f"worker {w:>4} | " + " | ".join(name.of(m) for m in queues[w][position[w] : position[w] + 3])
        for w in circle[:12]
    ]
    return fault(
        "deadlock", f"workers {', '.join(map(str, circle[:12]))} wait for each other in a circle", scope.place(),
        "each waits in the first communication of its row until the next one comes to it:", *rows,
        right="one order of communications that all workers agree on",
    )  # fmt: skip


class _Names:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.tensors: dict[int, str] = {}
        for role in scope.roles:
            for block in role.program.blocks:
                for step in block.steps:
                    if isinstance(step, Collective):
                        self.tensors[step.comm] = f"{step.kind} {role.program.values[step.src].tensor}"
                    elif isinstance(step, Send | Recv):
                        self.tensors[step.comm] = f"transfer {scope.entry.routes[step.route].tensor}"

    def of(self, meet: Meet) -> str:
        return f"{meet[0]}: {self.tensors[meet[0]]}, micro-batch {meet[1]}"
