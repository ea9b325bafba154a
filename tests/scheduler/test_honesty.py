"""Nothing says "optimal" that is not, and no bound exceeds a schedule that exists."""

import random

import pytest

from superscaler.errors import InfeasiblePlan
from superscaler.scheduler import solve, verify
from superscaler.scheduler.bounds import closed_form
from superscaler.scheduler.certified import solve_pipeline
from superscaler.scheduler.cpsat_relaxation import relaxed_bound
from superscaler.scheduler.flow import Flow, flow_of
from superscaler.scheduler.greedy import greedy, policies, tuning
from superscaler.scheduler.greedy_back import greedy_back
from superscaler.scheduler.periodic import feasible
from superscaler.scheduler.pipeline import PipelineProblem, to_problem
from superscaler.scheduler.ramps import ramp_bound
from tests.scheduler.oracle import random_pipeline, random_side_by_side, shortest


def agrees(seed: int) -> None:
    problem = random_pipeline(seed)
    table = solve_pipeline(problem)
    assert table.certificate.status == "optimal", problem
    assert table.makespan == shortest(to_problem(problem)), problem


@pytest.mark.parametrize("seed", range(40))
def test_exhaustive_search_agrees(seed: int) -> None:
    agrees(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 240))
def test_exhaustive_search_agrees_on_two_hundred_more(seed: int) -> None:
    agrees(seed)


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_the_generic_solver_agrees_with_exhaustive_search(seed: int) -> None:
    problem = to_problem(random_pipeline(seed))
    table = solve(problem)
    verify(problem, table.starts)
    assert table.certificate.bound <= (shortest(problem) or 0) <= table.makespan
    assert table.certificate.status == "optimal"


def agrees_side_by_side(seed: int) -> None:
    problem = random_side_by_side(seed)
    optimum = shortest(problem)
    if optimum is None:
        with pytest.raises(InfeasiblePlan):
            solve(problem)
        return
    table = solve(problem)
    verify(problem, table.starts)
    assert closed_form(problem).value <= optimum
    assert table.certificate.status == "optimal"
    assert table.makespan == optimum


@pytest.mark.parametrize("seed", range(4, 12))
def test_exhaustive_search_agrees_on_independent_pipelines_side_by_side(seed: int) -> None:
    agrees_side_by_side(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(180, 280))
def test_exhaustive_search_agrees_on_a_hundred_more_side_by_side(seed: int) -> None:
    agrees_side_by_side(seed)


def any_flow(draw: random.Random) -> Flow:
    placement = draw.choice(("linear", "v", "interleaved"))
    devices = draw.randint(1, 6)
    stages = devices * {"linear": 1, "v": 2, "interleaved": draw.choice((2, 3))}[placement]
    costs = [tuple(draw.randint(3, 12) for _ in range(stages)) for _ in range(3)]
    if draw.random() < 0.3:
        costs = [(draw.randint(3, 9),) * stages for _ in range(3)]
    least = stages // devices
    problem = PipelineProblem(
        stages,
        draw.randint(1, 12),
        *costs,
        comm=draw.choice((0, 1, 3)),
        max_activations=draw.choice((None, *range(least, least + 6))),
        devices=devices,
        placement=placement,
    )
    return flow_of(problem)


def test_no_bound_exceeds_a_feasible_schedule_on_two_thousand() -> None:
    draw = random.Random(11)
    checked = 0
    while checked < 2000:
        flow = any_flow(draw)
        bound = ramp_bound(flow).value
        known = list(policies(flow))
        for policy, back in draw.sample(known, 4):
            starts = (greedy_back if back else greedy)(flow, tuning(flow, policy))
            assert feasible(flow, starts), (flow, policy, back)
            assert bound <= flow.makespan(starts), (flow, policy, back)
            checked += 1


def test_the_generic_bound_never_exceeds_a_feasible_schedule() -> None:
    draw = random.Random(12)
    for _ in range(150):
        problem = random_pipeline(draw.randrange(10**9))
        table = solve(to_problem(problem), effort=0)
        assert closed_form(table.problem).value <= table.makespan


@pytest.mark.parametrize("seed", range(60, 84))
def test_the_relaxation_of_some_devices_never_exceeds_the_optimum(seed: int) -> None:
    problem = random_pipeline(seed)
    if not problem.comm_is_a_delay:
        return
    flow = flow_of(problem)
    optimum = shortest(to_problem(problem)) or 0
    for devices in ([0], [flow.devices - 1], range(flow.devices)):
        bound = relaxed_bound(flow, devices, 0, 2 * optimum, effort=0.5)
        assert bound <= optimum
    assert ramp_bound(flow).value <= optimum
