"""Sums formed over time: which terms and time indices each contribution to a value covers.

The domain of a sum is its addends (of an ``add_n``, else one) times the time axes summed over. It is complete when each
point has been covered once. A set of points is an integer with one bit per point; the micro-batch is the fastest axis,
so the contribution of micro-batch j is that of micro-batch 0 shifted by j.
"""

from __future__ import annotations

from typing import NamedTuple

from superscaler.ir.check import limits
from superscaler.ir.check.fault import fault
from superscaler.ir.check.scope import Role
from superscaler.ir.layout import Partial, Shard, State
from superscaler.ir.program import Accumulate, At, Collect


class Domain(NamedTuple):
    """``addends``: numbers of the addends, in order. ``axes``: time axes, micro-batches last. ``collects``: parts are
    put side by side, not added."""

    addends: tuple[int, ...]
    axes: tuple[str, ...]
    ways: tuple[int, ...]
    collects: bool

    @property
    def points(self) -> int:
        """How many contributions a complete sum has: addends × the ways of all axes."""
        n = len(self.addends)
        for ways in self.ways:
            n *= ways
        return n

    @property
    def full(self) -> int:
        """The bits of a complete sum."""
        return (1 << self.points) - 1


class Points(NamedTuple):
    """Bits that a contribution covers; shifted by the micro-batch if ``moves``."""

    bits: int
    moves: bool


def over_time(role: Role, step: Accumulate | Collect) -> tuple[str, ...]:
    """The time axes over which a step sums, or whose parts it puts together."""
    space, values = role.scope.space, role.program.values
    have, into = values[step.src].layout, values[step.into].layout
    wanted: type[State] = Shard if isinstance(step, Collect) else Partial
    return tuple(
        name
        for name, state in have.states
        if space.axis(name).kind == "time" and isinstance(state, wanted) and into.state(name) is None
    )


def domains(role: Role) -> dict[int, Domain]:
    """The domain of every value that is formed over time."""
    steps: dict[int, list[Accumulate | Collect]] = {}
    for block in role.program.blocks:
        for step in block.steps:
            if isinstance(step, Accumulate | Collect):
                steps.setdefault(step.into, []).append(step)
    return {into: _domain(role, into, found) for into, found in steps.items()}


def _domain(role: Role, into: int, steps: list[Accumulate | Collect]) -> Domain:
    scope = role.scope
    if len({type(step) for step in steps}) > 1:
        raise fault("malformed plan", f"{role.value_text(into)} is both summed and put together", role.place())
    names = {name for step in steps for name in over_time(role, step)}
    axes = tuple(sorted(names, key=lambda name: (name == scope.micro, scope.space.rank(name))))
    value = role.program.values[into]
    count = len(scope.addends.get(value.tensor, ()))
    summed = isinstance(steps[0], Accumulate)
    addends = tuple(sorted(value.terms)) if value.terms else tuple(range(count)) if summed and count else (0,)
    domain = Domain(addends, axes, tuple(scope.space.axis(a).ways for a in axes), not summed)
    if domain.points > limits.TERMS:
        raise fault("too large", f"{role.value_text(into)} is a sum of {domain.points} terms", role.place())
    return domain


def points(domain: Domain, addends: tuple[int, ...], covers: tuple[str, ...], at: At, micro: str) -> Points:
    """The points of a contribution of ``addends``; along axes not in ``covers`` it covers every index."""
    fixed = dict(at)
    bits, stride = 1, 1
    for axis, ways in zip(reversed(domain.axes), reversed(domain.ways), strict=True):
        if axis not in covers:
            bits *= ((1 << stride * ways) - 1) // ((1 << stride) - 1)  # one copy per index
        elif axis != micro:
            bits <<= stride * fixed[axis]
        stride *= ways
    each = domain.points // len(domain.addends)
    total = 0
    for addend in addends:
        total |= bits << domain.addends.index(addend) * each
    return Points(total, micro in covers)


def missing(domain: Domain, have: int) -> str:
    """The first point that is not covered, in words."""
    gap = next(i for i in range(domain.points) if not have >> i & 1)
    where: list[str] = []
    for axis, ways in zip(reversed(domain.axes), reversed(domain.ways), strict=True):
        gap, index = divmod(gap, ways)
        where.append(f"{axis} = {index}")
    if len(domain.addends) > 1:
        where.append(f"term {domain.addends[gap]}")
    done = have.bit_count()
    return f"{done} of {domain.points} contributions are in; {', '.join(where) or 'it'} is missing"
