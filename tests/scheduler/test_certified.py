"""solve_pipeline(): the published optima are met and proven, and nothing depends on the machine."""

import multiprocessing
import threading
from dataclasses import replace

import pytest

from superscaler.errors import InfeasiblePlan, ScheduleError, UsageError
from superscaler.scheduler import verify
from superscaler.scheduler.certified import named_pipeline, solve_pipeline
from superscaler.scheduler.pipeline import PipelineProblem, to_problem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable
from tests.cases import slow


def v(devices: int, microbatches: int, activations: int, comm: int = 0) -> PipelineProblem:
    """A V of half stages of 5 ticks."""
    return PipelineProblem(2 * devices, microbatches, 5, 5, 5, comm=comm, max_activations=activations, placement="v")


def check(table: PipelineTimetable) -> None:
    flat = [start for kind in table.starts for row in kind for start in row]
    verify(to_problem(table.problem, sends=False), flat)


LINEAR_OPTIMA = [
    (4, 8, 4, 0, 270),
    (4, 8, 4, 1, 282),
    (4, 16, 4, 0, 510),
    (4, 16, 4, 1, 522),
    (8, 16, 8, 0, 550),
    (8, 16, 8, 1, 578),
    (8, 32, 8, 0, 1030),
    (8, 32, 8, 1, 1058),
    (8, 32, 6, 0, 1090),
    (8, 32, 4, 0, 1510),
]


@pytest.mark.parametrize(("devices", "microbatches", "activations", "comm", "optimum"), LINEAR_OPTIMA)
def test_linear_optima_are_found_and_proven(
    devices: int, microbatches: int, activations: int, comm: int, optimum: int
) -> None:
    table = solve_pipeline(PipelineProblem(devices, microbatches, comm=comm, max_activations=activations))
    check(table)
    assert (table.certificate.status, table.makespan) == ("optimal", optimum)


def proves(activations: int, optimum: int) -> None:
    table = solve_pipeline(v(8, 32, activations))
    check(table)
    assert (table.certificate.status, table.makespan) == ("optimal", optimum)


def test_a_v_at_the_bytes_of_1f1b_is_proven() -> None:
    proves(16, 995)


@pytest.mark.slow
@pytest.mark.parametrize(("activations", "optimum"), [(14, 1005), (12, 1015), (10, 1045), (9, 1060), (8, 1075)])
def test_the_memory_frontier_of_a_v_is_proven(activations: int, optimum: int) -> None:
    proves(activations, optimum)


def test_mixed_devices_balanced_to_their_speed_run_as_equal_ones() -> None:
    costs = (10,) * 4 + (20,) * 4
    problem = PipelineProblem(8, 64, costs, costs, costs, max_activations=8, speed=(1,) * 4 + (2,) * 4)
    table = solve_pipeline(problem)
    check(table)
    assert table.certificate.status == "optimal"
    assert table.bubble < 0.05


STEADY = [v(4, 200, 8), slow(v(4, 200, 8, comm=1)), PipelineProblem(4, 300, 7, 11, 5, comm=2)]


@pytest.mark.parametrize("problem", STEADY)
def test_many_microbatches_repeat_the_steady_state_of_few(problem: PipelineProblem) -> None:
    table = solve_pipeline(problem, effort=0.1)
    check(table)
    few = solve_pipeline(replace(problem, microbatches=32), effort=0.1)
    period = 3 * 10 if problem.placement == "v" else 7 + 11 + 5
    assert table.makespan - few.makespan <= 1.005 * period * (problem.microbatches - 32)
    assert table.certificate.gap < 0.01


def test_a_limit_too_short_returns_the_constructive_schedule_and_says_so() -> None:
    table = solve_pipeline(v(8, 32, 9, comm=1), time_limit=0.0)
    check(table)
    assert table.certificate.status == "time_limit"
    assert table.makespan == table.certificate.baseline[0]


@pytest.mark.parametrize(
    "problem",
    [
        PipelineProblem(8, 48, comm=30, max_activations=5),
        PipelineProblem(8, 8, 2, (2, 3, 3, 1, 2, 2, 3, 3), 2, placement="bidirectional"),
    ],
)
def test_no_time_at_all_is_said_of_any_pipeline(problem: PipelineProblem) -> None:
    assert solve_pipeline(problem, time_limit=0.0).status == "time_limit"


@pytest.mark.parametrize("microbatches", [64, 300])
def test_more_time_never_ends_in_a_longer_schedule_of_many_microbatches(microbatches: int) -> None:
    problem = PipelineProblem(16, microbatches, comm=1, max_activations=9, placement="v")
    quick, slow = (solve_pipeline(problem, effort=0, time_limit=limit) for limit in (0.0, 0.2))
    check(slow)
    assert slow.makespan <= quick.makespan


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert solve_pipeline(PipelineProblem(4, 6, comm=3, max_activations=3), seed=seed).makespan == 276
    check(solve_pipeline(v(2, 4, 3, comm=1), seed=seed, effort=0.1))


def test_memory_that_holds_no_schedule_is_named_with_what_would_do() -> None:
    with pytest.raises(InfeasiblePlan) as caught:
        solve_pipeline(v(4, 8, 1))
    assert "memory[0]=1" in str(caught.value)
    assert "2 activations on every device" in str(caught.value)
    check(solve_pipeline(v(4, 8, 2)))


@pytest.mark.parametrize("limit", [(2, 2, 1, 2), (1, 2, 2, 2)])
def test_one_short_device_is_named(limit: tuple[int, ...]) -> None:
    with pytest.raises(InfeasiblePlan, match=f"2 activations on device {limit.index(1)}"):
        solve_pipeline(PipelineProblem(8, 8, 5, 5, 5, max_activations=limit, placement="v"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward": 0}, "forward of stage 0 is 0"),
        ({"backward": (10, 10, -1, 10)}, "backward of stage 2 is -1"),
        ({"weight": (10, 10)}, "weight has 2 entries for 4 stages"),
        ({"comm": -1}, "comm is -1"),
        ({"microbatches": 0}, "0 micro-batches"),
        ({"speed": (1, 1, 0, 1)}, "speed of device 2 is 0"),
        ({"max_activations": 0}, "max_activations of device 0 is 0"),
    ],
)
def test_bad_numbers_are_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"stages": 4, "microbatches": 8, **change}
    with pytest.raises(ScheduleError, match=message):
        PipelineProblem(**arguments)  # type: ignore[arg-type]


def test_unknown_names_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="linear"):
        PipelineProblem(4, 8, placement="liner")
    with pytest.raises(UsageError, match="did you mean '1f1b'"):
        named_pipeline(PipelineProblem(4, 8), "1f1p")


def test_a_named_schedule_beyond_memory_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"memory\[0\] is 3"):
        named_pipeline(PipelineProblem(4, 8, max_activations=3), "1f1b")


def test_same_seed_same_schedule_under_load() -> None:
    problem = v(3, 9, 5, comm=1)
    quiet = solve_pipeline(problem, seed=3, effort=0.03)
    stop = multiprocessing.Event()
    burners = [multiprocessing.Process(target=burn, args=(stop,), daemon=True) for _ in range(3)]
    for process in burners:
        process.start()
    try:
        busy = solve_pipeline(problem, seed=3, effort=0.03)
    finally:
        stop.set()
        for process in burners:
            process.join()
    assert quiet.starts == busy.starts
    assert quiet.certificate.makespan == busy.certificate.makespan


def burn(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(10_000))


def test_the_solver_module_is_imported_only_to_search() -> None:
    import subprocess
    import sys

    code = (
        "import sys, superscaler.scheduler as s\n"
        "from superscaler.scheduler.certified import solve_pipeline\n"
        "from superscaler.scheduler.pipeline import PipelineProblem\n"
        "solve_pipeline(PipelineProblem(4, 8, max_activations=4))\n"
        "assert 'ortools' not in sys.modules and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
