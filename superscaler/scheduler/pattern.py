"""Steady states of V pipelines with uniform offsets: every device does what its neighbour does, some slots later.

These are the building blocks of Qi et al. 2024 ("Pipeline Parallelism with Controllable Memory"): six slots a period,
one per forward, backward and weight gradient of both stages. Which offsets fit a memory is found by trying them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

PERIOD = 6
_OFFSETS = range(1, PERIOD + 1)
Line = tuple[int, ...]
"""One start per device, in slots."""


@lru_cache(maxsize=64)
def v_patterns(devices: int, capacity: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Starts by kind and stage of micro-batch 0, in slots, of all patterns within ``capacity`` activations.

    Empty if no uniform pattern fits. Stage s of 2P lies on device ``min(s, 2P-1-s)``.
    """
    found: list[tuple[tuple[int, ...], ...]] = []
    for lines in _lines(devices):
        weights = [_weights([line[d] for line in lines]) for d in range(devices)]
        if max(_peak([line[d] for line in lines], weights[d]) for d in range(devices)) <= capacity:
            found.append(_stages(lines, weights))
    return tuple(found)


def _lines(devices: int) -> Iterator[tuple[Line, Line, Line, Line]]:
    """Forward down, forward up, backward down, backward up: no two of a device in the same slot of the period."""
    up, down = range(devices - 1, -1, -1), range(devices)
    for hop in _hops(down):
        first = tuple(hop * d for d in down)
        for second in _next([first], first[-1], up):
            for third in _next([first, second], second[0], down):
                for fourth in _next([first, second, third], third[-1], up):
                    yield first, second, third, fourth


def _next(before: Sequence[Line], since: int, steps: range) -> Iterator[Line]:
    """Lines that start after ``since`` on the device where the last one ended and move one device per hop."""
    for turn, hop in product(_OFFSETS, _hops(steps)):
        line = tuple(since + turn + hop * step for step in steps)
        if all((line[d] - other[d]) % PERIOD for other in before for d in range(len(line))):
            yield line


def _hops(steps: range) -> Sequence[int]:
    """The ticks to tell lines apart by from one device to the next; on one device all are alike."""
    return _OFFSETS if len(steps) > 1 else _OFFSETS[:1]


def _weights(starts: Sequence[int]) -> tuple[int, int]:
    """Where the weight gradients of the upper and the lower stage go: the next free slots after their backwards."""
    taken = {start % PERIOD for start in starts}
    found: list[int] = []
    for backward in (starts[2], starts[3]):
        slot = next(t for t in range(backward + 1, backward + 1 + PERIOD) if t % PERIOD not in taken)
        taken.add(slot % PERIOD)
        found.append(slot)
    return found[0], found[1]


def _peak(starts: Sequence[int], weights: tuple[int, int]) -> int:
    """The most activations at once on a device: taken at a forward's start, given back at a weight gradient's end."""
    lives = ((starts[1], weights[0] + 1), (starts[0], weights[1] + 1))
    return max(sum((slot - begin) // PERIOD - (slot - end) // PERIOD for begin, end in lives) for slot in range(PERIOD))


def _stages(lines: Sequence[Line], weights: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    first, second, third, fourth = lines
    return (
        first + second[::-1],
        fourth + third[::-1],
        tuple(w for _, w in weights) + tuple(w for w, _ in reversed(weights)),
    )
