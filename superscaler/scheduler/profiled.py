"""Durations of a plan's tasks from a profile: measured where they were, estimated from its figures where not."""

from __future__ import annotations

from superscaler.ir.entry import Contents, Entry
from superscaler.ir.program import Call, Collective, Item, Recv, Send
from superscaler.scheduler.cost import VIEWS, microseconds, move_seconds, op_seconds, slowest
from superscaler.scheduler.keys import Keys, move_key, op_key
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.replay import Durations
from superscaler.transforms.usage import reads


def durations(plan: Contents, name: str, profile: Profile) -> Durations:
    """(role, item) -> microseconds, for :func:`superscaler.scheduler.simulate.simulate`."""
    return _Durations(plan, plan.entries[name], profile)


def known(plan: Contents, name: str, profile: Profile) -> tuple[int, int]:
    """Of how many tasks of an entry that compute the profile has measured the body, or every op; and of how many."""
    entry, count, total = plan.entries[name], 0, 0
    for program in entry.programs:
        keys = Keys(plan, entry, program)
        for item in program.order:
            block = program.blocks[item.block]
            ops = [(c, row) for c in block.steps if isinstance(c, Call) for row in entry.definitions[c.definition].rows]
            if block.lane != "compute" or not ops:
                continue
            total += 1
            found = ((entry.graph.ops[call.base + row.offset], row.splits) for call, row in ops)
            count += keys.block(item.block, item.microbatch) in profile.blocks or all(
                op.target in VIEWS or op_key(op, entry.graph, splits, plan.space) in profile.ops for op, splits in found
            )
    return count, total


class _Durations:
    def __init__(self, plan: Contents, entry: Entry, profile: Profile) -> None:
        self.plan, self.entry, self.profile = plan, entry, profile
        self.cluster = profile.applied(plan.cluster)
        self.keys = [Keys(plan, entry, program) for program in entry.programs]
        self.known: dict[tuple[int, int, int], int] = {}

    def __call__(self, role: int, item: Item) -> int:
        key = (role, item.block, item.microbatch)
        if key not in self.known:
            seconds = self._computing(role, item) + self._moving(role, item)
            self.known[key] = microseconds(seconds, self.keys[role].program.blocks[item.block].name)
        return self.known[key]

    def _computing(self, role: int, item: Item) -> float:
        keys = self.keys[role]
        measured = self.profile.blocks.get(keys.block(item.block, item.microbatch))
        if measured is not None:
            return measured
        block = keys.program.blocks[item.block]
        if block.lane == "transfer":
            return self._copying(keys, item)
        device = self.cluster.device(keys.worker)
        total = 0.0
        for step in block.steps:
            if isinstance(step, Call):
                for row in self.entry.definitions[step.definition].rows:
                    op = self.entry.graph.ops[step.base + row.offset]
                    total += op_seconds(op, self.entry.graph, row.splits, self.plan.space, device, self.profile)
            elif not isinstance(step, Collective | Send | Recv):
                size = sum(keys.bytes(v, block, item.microbatch) for v in reads(step))
                total += 2 * size / device.bandwidth + device.overhead
        return total

    def _copying(self, keys: Keys, item: Item) -> float:
        """Between device and host memory."""
        block, link = keys.program.blocks[item.block], self.cluster.host
        sizes = [keys.bytes(v, block, item.microbatch) for step in block.steps for v in reads(step)]
        return sum(link.latency + size / link.bandwidth for size in sizes)

    def _moving(self, role: int, item: Item) -> float:
        keys = self.keys[role]
        block = keys.program.blocks[item.block]
        total = 0.0
        for step in block.steps:
            if isinstance(step, Collective):
                group, size = keys.moved(step, block, item.microbatch)
                measured = self.profile.moves.get(move_key(step.kind, len(group), size))
                total += move_seconds(step.kind, size, group, self.cluster) if measured is None else measured
            elif isinstance(step, Send | Recv):
                total += self._transfer(keys, item, step)
        return total

    def _transfer(self, keys: Keys, item: Item, step: Send | Recv) -> float:
        route, worker = self.entry.routes[step.route], keys.worker
        mine = [p for p in route.pieces if p.source != p.destination and worker in (p.source, p.destination)]
        if not mine:
            return 0.0
        value = step.src if isinstance(step, Send) else step.dst
        size = keys.bytes(value, keys.program.blocks[item.block], item.microbatch)
        link = slowest((mine[0].source, mine[0].destination), self.cluster)
        return link.latency + size / link.bandwidth
