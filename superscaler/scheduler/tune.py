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


def climb(flow: Flow, make: Make, tuned: Tuning, floor: int, tries: int, seed: int, stop: Callable[[], bool]) -> Starts:
    """The best schedule of ``make`` in ``tries`` random changes of ``tuned``, each kept unless it is longer."""
    random = Random(seed)
    best = make(flow, tuned)
    length = flow.makespan(best)
    for _ in range(tries):
        if length <= floor or stop():
            break
        changed = tuned
        for _ in range(random.choice((1, 1, 2, 3))):
            changed = _change(flow, changed, random)
        starts = make(flow, changed, length)
        if starts and flow.makespan(starts) <= length:
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


def _at(values: tuple[_T, ...], place: int, change: Callable[[_T], _T]) -> tuple[_T, ...]:
    return (*values[:place], change(values[place]), *values[place + 1 :])
