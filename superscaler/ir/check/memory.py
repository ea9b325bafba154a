"""Memory: buffers that live at the same time lie apart, everything fits into the arena, the arena onto the device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from superscaler.ir.check.bodies import Bodies
from superscaler.ir.check.fault import fault
from superscaler.ir.check.order import History
from superscaler.ir.check.scope import Role
from superscaler.ir.check.sizes import PartSizes
from superscaler.ir.program import Buffer

ALIGNMENT = 64


def check_memory(role: Role, bodies: Bodies, history: History, sizes: PartSizes, state: Mapping[int, int]) -> int:
    """The bytes of state and arena of the fullest worker. ``state``: worker -> bytes of its state.

    Raises a :class:`Fault` where buffers overlap, are too small, or do not fit.
    """
    program = role.program
    if program.arena < 0 or program.peak < 0:
        raise fault("malformed plan", "memory of negative size", role.place())
    for buffer in program.buffers:
        _check_buffer(role, buffer, sizes)
    _check_apart(role, bodies, history)
    return _check_capacity(role, sizes, state)


def instances(role: Role, value: int) -> int:
    """How many instances of a value there are."""
    n = 1
    for axis in role.program.values[value].over:
        n *= role.scope.space.axis(axis).ways
    return n


def _check_buffer(role: Role, buffer: Buffer, sizes: PartSizes) -> None:
    value = role.program.values[buffer.value]
    if buffer.value in role.state_of or buffer.value in role.inputs or buffer.value in role.host:
        raise fault("malformed plan", f"{role.value_text(buffer.value)} needs no buffer and has one", role.place())
    need = sizes.bytes(role.scope.graph.tensor[value.tensor], value.layout)
    if buffer.size < need:
        raise fault(
            "buffer too small", f"{buffer.size} bytes for {role.value_text(buffer.value)}", role.place(),
            right=f"{need} bytes",
        )  # fmt: skip
    count = instances(role, buffer.value)
    if len(buffer.offsets) != count:
        raise fault(
            "no buffer", f"{len(buffer.offsets)} offsets for {role.value_text(buffer.value)}", role.place(),
            right=f"one for each of its {count} instances",
        )  # fmt: skip
    for offset in buffer.offsets:
        if offset < 0 or offset + buffer.size > role.program.arena:
            raise fault(
                "outside the arena", f"{role.value_text(buffer.value)} at {offset} to {offset + buffer.size}",
                role.place(), right=f"within 0 to {role.program.arena}",
            )  # fmt: skip
        if offset % ALIGNMENT:
            raise fault(
                "outside the arena", f"{role.value_text(buffer.value)} at {offset} is not aligned", role.place()
            )


# --- apart ------------------------------------------------------------------------------------------------------------

Placed = tuple[int, int, int]  # offset, end, value


def _check_apart(role: Role, bodies: Bodies, history: History) -> None:
    """No two buffers that live at one task overlap."""
    tasks = len(role.program.order)
    births: list[list[Placed]] = [[] for _ in range(tasks + 1)]
    deaths: list[list[Placed]] = [[] for _ in range(tasks + 1)]
    placed = _Placement(role, bodies, history)
    for kin, microbatch, born, died in history.lives:
        instances_of = placed.of(kin, microbatch)
        role.scope.spend(len(instances_of))
        for where in instances_of:
            births[born].append(where)
            deaths[died].append(where)
    live: list[Placed] = []
    for task in range(tasks):
        for where in births[task]:
            at = bisect_left(live, where)
            if at < len(live) and live[at][0] < where[1]:
                raise _overlap(role, task, where, live[at])
            if at > 0 and live[at - 1][1] > where[0]:
                raise _overlap(role, task, where, live[at - 1])
            live.insert(at, where)
        for where in deaths[task]:
            del live[bisect_left(live, where)]


def _overlap(role: Role, task: int, one: Placed, other: Placed) -> Exception:
    item = role.program.order[task]
    return fault(
        "overlapping buffers", f"{role.value_text(one[2])} at {one[0]} to {one[1]}",
        role.place(item.block, item.microbatch),
        f"{role.value_text(other[2])} lives at {other[0]} to {other[1]}",
        right="places of their own in the arena",
    )  # fmt: skip


class _Placement:
    """Where the instances of a class of values lie."""

    def __init__(self, role: Role, bodies: Bodies, history: History) -> None:
        self.buffers = {buffer.value: buffer for buffer in role.program.buffers}
        self.members: list[list[tuple[Buffer, int, int]]] = []  # buffer, first instance, stride of micro-batches
        for slots in history.kin:
            found: list[tuple[Buffer, int, int]] = []
            for slot in slots:
                value, indices = bodies.slots[slot]
                buffer = self.buffers.get(value)
                if buffer is not None and buffer.size:
                    found.append((buffer, *_strides(role, value, indices)))
            self.members.append(found)

    def of(self, kin: int, microbatch: int) -> list[Placed]:
        found: list[Placed] = []
        for buffer, first, stride in self.members[kin]:
            offset = buffer.offsets[first + stride * microbatch]
            found.append((offset, offset + buffer.size, buffer.value))
        return found


def _strides(role: Role, value: int, indices: tuple[int, ...]) -> tuple[int, int]:
    """The number of the instance at micro-batch 0, and how far apart micro-batches are: row-major over the axes."""
    fixed = iter(indices)
    number, stride, seen = 0, 0, False
    for axis in role.program.values[value].over:
        ways = role.scope.space.axis(axis).ways
        micro = axis == role.scope.micro
        number = number * ways + (0 if micro else next(fixed))
        stride = stride * ways if seen else 1 if micro else 0
        seen = seen or micro
    return number, stride


# --- capacity ---------------------------------------------------------------------------------------------------------


def _check_capacity(role: Role, sizes: PartSizes, state: Mapping[int, int]) -> int:
    program, cluster = role.program, role.scope.plan.cluster
    inputs = sum(
        sizes.bytes(role.scope.graph.tensor[program.values[v].tensor], program.values[v].layout) for v in role.inputs
    )
    most = 0
    for worker in role.workers:
        need = state.get(worker, 0) + program.arena
        device = cluster.device(worker)
        most = max(most, need)
        if max(need + inputs, program.peak) > device.memory:
            raise fault(
                "out of memory", f"worker {worker} ({device.name}) needs {max(need + inputs, program.peak):,} bytes",
                role.place(), f"state {state.get(worker, 0):,}, arena {program.arena:,}, inputs {inputs:,}, stated "
                f"peak {program.peak:,}", right=f"at most {device.memory:,}",
            )  # fmt: skip
    if program.peak and program.peak < most:
        raise fault(
            "wrong peak", f"a stated peak of {program.peak:,} bytes", role.place(),
            right=f"at least the {most:,} of state and arena",
        )  # fmt: skip
    return most
