"""Greedy schedules tuned to one pipeline: hill climbing over what a policy leaves the same for every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Protocol, TypeVar

from superscaler.scheduler.flow import Flow, Starts
from superscaler.scheduler.greedy import Tuning


class Make(Protocol):
    """``greedy`` or ``greedy_back``."""

    def __call__(self, flow: Flow, tuned: Tuning, limit: int = ...) -> Starts: ...


_T = TypeVar("_T")
_PATIENCE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_STEPS = (-1.0, -0.5, -0.2, 0.2, 0.5, 1.0)


def climb(
    flow: Flow, make: Make, tuned: Tuning, floor: int, tries: int, patience: int, seed: int, stop: Callable[[], bool]
) -> Starts:
    """The best schedule of ``make`` in ``tries`` random changes of ``tuned``, each kept unless it is longer.

    It ends after ``patience`` changes without a gain.
    """
    random = Random(seed)
    best = make(flow, tuned)
    length = flow.makespan(best)
    known: dict[Tuning, Starts] = {}
    gained = 0
    for number in range(tries):
        if length <= floor or number - gained > patience or stop():
            break
        changed = tuned
        for _ in range(random.choice((1, 1, 2, 3))):
            changed = _change(flow, changed, random)
        alike = without_difference(flow, changed)
        if alike not in known:
            known[alike] = make(flow, changed, length)
        if (starts := known[alike]) and flow.makespan(starts) <= length:
            gained = number if flow.makespan(starts) < length else gained
            best, length, tuned = starts, flow.makespan(starts), changed
    return best


def _change(flow: Flow, tuned: Tuning, random: Random) -> Tuning:
    """One thing changed at one stage."""
    which, s = random.random(), random.randrange(flow.stages)
    if which < 0.5:
        return replace(tuned, in_flight=_at(tuned.in_flight, s, lambda n: max(1, n + random.choice((-1, 1)))))
    step = random.choice(_STEPS) * max(flow.load) / 6
    if which < 0.7:
        return replace(tuned, forward=_at(tuned.forward, s, lambda offset: offset + step))
    if which < 0.9:
        return replace(tuned, backward=_at(tuned.backward, s, lambda offset: offset + step))
    return replace(tuned, patience=random.choice(_PATIENCE))


def without_difference(flow: Flow, tuned: Tuning) -> Tuning:
    """The same for all that make one schedule: of offsets only what differs on a device counts, of micro-batches in
    flight only what memory has room for."""
    base = [tuned.forward[flow.stages_of[d][0]] for d in flow.device]
    return replace(
        tuned,
        in_flight=tuple(min(n, flow.capacity[d]) for n, d in zip(tuned.in_flight, flow.device, strict=True)),
        forward=tuple(round(a - b, 6) for a, b in zip(tuned.forward, base, strict=True)),
        backward=tuple(round(a - b, 6) for a, b in zip(tuned.backward, base, strict=True)),
    )


def _at(values: tuple[_T, ...], place: int, change: Callable[[_T], _T]) -> tuple[_T, ...]:
    return (*values[:place], change(values[place]), *values[place + 1 :])
