"""Improvement of a pipeline's schedule by exact windows: mostly where it fills and where it drains.

A steady state that keeps the busiest device busy cannot be improved; the ramps can, and they do not grow with the
number of micro-batches. Which windows, and for how long, depends on the seed and on deterministic effort only.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from time import monotonic

from superscaler.scheduler.flow import Flow, Starts
from superscaler.scheduler.unroll import unroll

WINDOW = (190, 340)
"""The number of tasks that a window holds: fewer prove nothing new, more take too long."""
_PATIENCE = 14
_WINDOW_EFFORT = 0.6


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: deterministic seconds, and the time (``monotonic``) at which the fuse blows, if any."""

    effort: float
    seed: int = 0
    deadline: float | None = None

    @property
    def left(self) -> float | None:
        """Wall seconds until the fuse."""
        return None if self.deadline is None else self.deadline - monotonic()

    @property
    def blown(self) -> bool:
        return self.left is not None and self.left <= 0.02


def polish(flow: Flow, starts: Starts, floor: int, budget: Budget) -> Starts:
    """``starts`` shortened window by window until ``floor``, the effort, or nothing more is found."""
    from superscaler.scheduler.cpsat_window import improve_window

    random = Random(budget.seed)
    spent, stale, number = 0.0, 0, 0
    while flow.makespan(starts) > floor and spent < budget.effort and stale < _PATIENCE and not budget.blown:
        since, until = _window(flow, flow.makespan(starts), number, random)
        step = improve_window(
            flow,
            starts,
            since,
            until,
            floor=floor,
            effort=min(_WINDOW_EFFORT, budget.effort - spent),
            seed=number // 2,
            time_limit=budget.left,
        )
        spent += max(step.effort, 0.02)
        number += 1
        stale = 0 if step.starts is not None else stale + 1
        starts = step.starts or starts
    return starts


def _window(flow: Flow, total: int, number: int, random: Random) -> tuple[int, int | None]:
    """Filling and draining by turns, at the very end or up to three periods from it."""
    period = max(flow.load)
    width = round(random.uniform(*WINDOW) / (3 * flow.stages) * period)
    off = random.choice((0, 0, 0, 1, 2, 3)) * period
    if number % 2 == 0:
        return off, off + width
    return max(0, total - off - width), (total - off if off else None)


def prove(flow: Flow, starts: Starts, floor: int, budget: Budget) -> tuple[Starts, bool]:
    """The whole problem as one window: a shorter schedule if there is one, and whether it is proven best."""
    from superscaler.scheduler.cpsat_window import improve_window

    step = improve_window(
        flow, starts, 0, None, floor=floor, effort=budget.effort, seed=budget.seed, time_limit=budget.left
    )
    return step.starts or starts, step.proven


def from_kernel(flow: Flow, budget: Budget) -> Starts | None:
    """A schedule from an exact steady state of the least period that memory allows, or None."""
    from superscaler.scheduler.cpsat_kernel import find_kernel

    b, w = flow.duration[1], flow.duration[2]
    lives = (sum(flow.round_trip[s] + b[s] + w[s] for s in mine) for mine in flow.stages_of)
    least = max(max(flow.load), *(-(-life // room) for life, room in zip(lives, flow.capacity, strict=True)))
    step = max(1, least // 12 // flow.tick) * flow.tick
    period = -(-least // flow.tick) * flow.tick
    while period < 2 * least and not budget.blown:
        kernel = find_kernel(flow, period, effort=budget.effort, seed=budget.seed)
        if kernel is not None:
            return unroll(flow, kernel, period)
        period += step
    return None
