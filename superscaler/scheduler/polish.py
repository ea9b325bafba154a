"""Improvement of a pipeline's schedule by exact windows: mostly where it fills and where it drains.

A steady state that keeps the busiest device busy cannot be improved; the ramps can, and they do not grow with the
number of micro-batches. Which windows, and for how long, depends on the seed and on deterministic effort only: two are
solved at a time, one worker each, and both results are taken.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from time import monotonic

from superscaler.scheduler.flow import Flow, Starts
from superscaler.scheduler.pattern import PERIOD, v_patterns
from superscaler.scheduler.periodic import feasible
from superscaler.scheduler.unroll import unroll

_SMALL, _LARGE = (170, 240), (200, 360)
"""The number of tasks that a window holds, at first and later: few are fast, many find more."""
_ROUNDS_OF_SMALL = 5
_PATIENCE = 8
_WINDOW_EFFORT = 0.5


_Windows = tuple[tuple[int, int | None], tuple[int, int | None]]


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
    random = Random(budget.seed)
    spent, stale, turn = 0.0, 0, 0
    with ThreadPoolExecutor(2) as pool:
        while flow.makespan(starts) > floor and spent < budget.effort and stale < _PATIENCE and not budget.blown:
            before = flow.makespan(starts)
            share = replace(budget, effort=min(_WINDOW_EFFORT, (budget.effort - spent) / 2))
            starts, effort = _both_ends(flow, starts, floor, share, _windows(flow, before, turn, random), turn, pool)
            spent += max(effort, 0.04)
            turn += 1
            stale = 0 if flow.makespan(starts) < before else stale + 1
    return starts


def _both_ends(
    flow: Flow, starts: Starts, floor: int, budget: Budget, windows: _Windows, turn: int, pool: ThreadPoolExecutor
) -> tuple[Starts, float]:
    """Two windows solved at once; what either gains adds up, unless one comes in the other's way."""
    from superscaler.scheduler.cpsat_window import Improvement, improve_window

    def improve(window: tuple[int, int | None]) -> Improvement:
        since, until = window
        return improve_window(
            flow, starts, since, until, floor=floor, effort=budget.effort, seed=turn, time_limit=budget.left
        )

    filled, drained = pool.map(improve, windows)
    effort = filled.effort + drained.effort
    if filled.starts is None or drained.starts is None:
        return filled.starts or drained.starts or starts, effort
    gain = flow.makespan(starts) - flow.makespan(filled.starts)
    since = windows[1][0]
    merged = [
        [[a if old < since else b - gain for old, a, b in zip(*rows, strict=True)] for rows in zip(*kinds, strict=True)]
        for kinds in zip(starts, filled.starts, drained.starts, strict=True)
    ]
    if feasible(flow, merged):
        return merged, effort
    # What one window has put later, near its end, may be where the other has put something earlier.
    return min(filled.starts, drained.starts, key=flow.makespan), effort


def _windows(flow: Flow, total: int, turn: int, random: Random) -> _Windows:
    """One where the pipeline fills and one where it drains, at the very ends or up to three periods from them."""
    period = max(flow.load)
    sizes = _SMALL if turn < _ROUNDS_OF_SMALL else _LARGE
    widths = [min(total // 2, round(random.uniform(*sizes) / (3 * flow.stages) * period)) for _ in range(2)]
    offs = [min(total // 2 - width, random.choice((0, 0, 0, 1, 2, 3)) * period) for width in widths]
    filling = (offs[0], offs[0] + widths[0])
    draining = (total - offs[1] - widths[1], total - offs[1] if offs[1] else None)
    return filling, draining


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

    least = least_period(flow)
    step = max(1, least // 12 // flow.tick) * flow.tick
    period = -(-least // flow.tick) * flow.tick
    while period < 2 * least and not budget.blown:
        kernel = find_kernel(flow, period, effort=budget.effort, seed=budget.seed, time_limit=budget.left)
        if kernel is not None:
            return unroll(flow, kernel, period)
        period += step
    return None


def from_pattern(flow: Flow) -> Starts | None:
    """The shortest schedule of a uniform pattern, for a V of equal tasks without delays; None where there is none."""
    sizes = {size for row in flow.duration for size in row}
    is_v = flow.device == tuple(min(s, flow.stages - 1 - s) for s in range(flow.stages))
    if len(sizes) > 1 or any(flow.into_forward) or not is_v or len(set(flow.capacity)) > 1:
        return None
    (unit,) = sizes
    patterns = v_patterns(flow.devices, flow.capacity[0])
    scaled = ([[slot * unit for slot in row] for row in pattern] for pattern in patterns)
    found = [starts for kernel in scaled if (starts := unroll(flow, kernel, PERIOD * unit)) is not None]
    return min(found, key=flow.makespan, default=None)


def least_period(flow: Flow) -> int:
    """No steady state is faster: the busiest device, or the lives of activations over the memory that holds them."""
    b, w = flow.duration[1], flow.duration[2]
    lives = (sum(flow.round_trip[s] + b[s] + w[s] for s in mine) for mine in flow.stages_of)
    return max(max(flow.load), *(-(-life // room) for life, room in zip(lives, flow.capacity, strict=True)))


def is_slow(flow: Flow, starts: Starts) -> bool:
    """Whether the middle half of ``starts`` runs at less than 99 % of the pace of the busiest device."""
    return pace(starts) > 1.01 * max(flow.load)


def pace(starts: Starts) -> float:
    """The ticks per micro-batch in the middle half of ``starts``; 0 if there are too few to tell."""
    row = starts[0][0]
    quarter = len(row) // 4
    return (row[-quarter] - row[quarter]) / (len(row) - 2 * quarter) if quarter else 0.0
