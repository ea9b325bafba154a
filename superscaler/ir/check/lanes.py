"""The schedule: tasks of a lane do not overlap, both ends of a communication meet, the certificate adds up."""

from __future__ import annotations

from superscaler.ir.check.bodies import Body, joint_communications
from superscaler.ir.check.fault import fault
from superscaler.ir.check.scope import Role, Scope
from superscaler.ir.program import Item

LAST = 1 << 60  # microseconds


def check_lanes(role: Role) -> None:
    """Planned times are times, and a worker computes one task at a time, in the order of its Program."""
    free = 0
    for item in role.program.order:
        if not 0 <= item.start <= item.end <= LAST:
            raise fault(
                "overlapping tasks", f"a task is planned from {item.start} to {item.end} us",
                role.place(item.block, item.microbatch),
            )  # fmt: skip
        if role.program.blocks[item.block].lane != "compute":
            continue
        if item.start < free:
            raise fault(
                "overlapping tasks", f"a task is planned at {item.start} us, while the one before runs until {free} us",
                role.place(item.block, item.microbatch), right=f"a start at {free} us or later",
            )  # fmt: skip
        free = item.end


Meeting = tuple[int, int]  # communication, micro-batch
Planned = tuple[int, Role, Item]  # a time, and whose it is


def check_ends(scope: Scope, done: dict[int, dict[int, Body]]) -> None:
    """A transfer has not arrived before it has been sent; no member leaves a collective before another one enters."""
    joint = joint_communications(done)
    begun: dict[Meeting, Planned] = {}  # what must have happened, at the latest
    over: dict[Meeting, Planned] = {}  # what waits for it, at the earliest
    for role in scope.roles:
        for item in role.program.order:
            kind = role.program.blocks[item.block].kind
            first = item.end if kind == "send" else item.start
            for comm in joint[role.index][item.block]:
                key = (comm, item.microbatch)
                if kind != "recv" and (key not in begun or first > begun[key][0]):
                    begun[key] = (first, role, item)
                if kind != "send" and (key not in over or item.end < over[key][0]):
                    over[key] = (item.end, role, item)
    for key, (end, early, item) in over.items():
        start, late, other = begun.get(key, (0, early, item))
        if end < start:
            raise fault(
                "task before its input", f"communication {key[0]} is planned to be over at {end} us",
                early.place(item.block, item.microbatch),
                f"but reaches {start} us at {late.place(other.block, other.microbatch)}",
                right="times at which all of its members are in it",
            )  # fmt: skip


def check_certificate(scope: Scope) -> None:
    """The bound does not exceed the makespan, and the makespan is the schedule's."""
    stated = scope.entry.certificate
    items = [item for role in scope.roles for item in role.program.order]
    last = max((item.end for item in items), default=0)
    if not 0 <= stated.bound <= stated.makespan:
        raise fault(
            "wrong certificate", f"a bound of {stated.bound} us on a makespan of {stated.makespan} us", scope.place()
        )
    gap = (stated.makespan - stated.bound) / stated.makespan if stated.makespan else 0.0
    if abs(gap - stated.gap) > 1e-3:
        raise fault("wrong certificate", f"a gap of {stated.gap}", scope.place(), right=f"{gap:.4f}")
    if stated.makespan < last - min((item.start for item in items), default=0):
        raise fault(
            "wrong certificate", f"a makespan of {stated.makespan} us", scope.place(), right=f"tasks end at {last} us"
        )
