"""Bounds where memory is the bottleneck: never above the optimum, and at it where micro-batches take turns."""

import random

import pytest

from superscaler.scheduler.flow import flow_of
from superscaler.scheduler.heads import heads
from superscaler.scheduler.lives import memory_bound
from superscaler.scheduler.pipeline import PipelineProblem, to_problem
from tests.scheduler.oracle import shortest


def tight(seed: int) -> PipelineProblem:
    """Uneven stages on one to three devices, in the least memory or one more."""
    draw = random.Random(seed)
    placement, devices, stages = draw.choice((("v", 1, 2), ("v", 2, 4), ("interleaved", 1, 3), ("interleaved", 2, 4)))
    costs = [tuple(draw.randint(1, 6) for _ in range(stages)) for _ in range(3)]
    limits = tuple(stages // devices + draw.choice((0, 0, 1)) for _ in range(devices))
    count = 3 if stages < 4 else 2
    comm = draw.choice((0, 0, 1))
    return PipelineProblem(
        stages, count, *costs, comm=comm, max_activations=limits, devices=devices, placement=placement
    )


@pytest.mark.parametrize("seed", range(60))
def test_no_bound_exceeds_the_optimum(seed: int) -> None:
    problem = tight(seed)
    flow = flow_of(problem)
    assert memory_bound(flow, heads(flow)).value <= (shortest(to_problem(problem)) or 0)


def test_a_v_of_three_activations_lets_micro_batches_take_turns() -> None:
    """On the last device of a V of 8, a micro-batch holds two activations over 17 half-stage times of 5 ticks, and no
    two can: 32 x 85 ticks, and 8 half-stage times each to get there and back."""
    flow = flow_of(PipelineProblem(16, 32, 5, 5, 5, max_activations=3, placement="v"))
    bound = memory_bound(flow, heads(flow))
    assert (bound.value, bound.binding) == (40 + 32 * 85 + 40, "memory of device 7")


@pytest.mark.parametrize(("devices", "microbatches", "optimum"), [(2, 3, 25), (2, 6, 49), (3, 4, 43), (3, 5, 53)])
def test_the_least_memory_of_a_v_has_its_optimum_as_bound(devices: int, microbatches: int, optimum: int) -> None:
    """The optima are those of an exact search: with two activations, no micro-batch overlaps the next one's."""
    flow = flow_of(PipelineProblem(2 * devices, microbatches, 1, 1, 1, max_activations=2, placement="v"))
    assert memory_bound(flow, heads(flow)).value == optimum
