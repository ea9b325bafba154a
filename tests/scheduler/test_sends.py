"""Sends longer than tasks take turns on their lane, and cost no more than they must."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from superscaler.scheduler.certified import solve_pipeline
from superscaler.scheduler.pipeline import KINDS, PipelineProblem, to_problem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable
from superscaler.scheduler.problem import verify


def check(table: PipelineTimetable) -> None:
    """Every dependency, lane and memory, those of communication too."""
    whole = to_problem(table.problem, sends=True)
    assert table.sends is not None
    at = {(f"send_{kind}", s, j): start for (kind, s, j), start in table.sends.items()}
    for kind, rows in zip(KINDS, table.starts, strict=True):
        at |= {(kind, s, j): start for s, row in enumerate(rows) for j, start in enumerate(row)}
    verify(whole, [at[job.kind, job.stage, job.microbatch] for job in whole.jobs])
    assert table.bound <= table.makespan


@settings(max_examples=10, deadline=None)
@given(
    placement=st.sampled_from(["linear", "v", "interleaved"]),
    devices=st.integers(2, 4),
    microbatches=st.integers(1, 8),
    comm=st.integers(7, 30),
    spare=st.none() | st.integers(0, 3),
)
@example("v", 3, 7, 7, 3)  # the two windows of a step come in each other's way
def test_sends_that_can_meet_are_scheduled(
    placement: str, devices: int, microbatches: int, comm: int, spare: int | None
) -> None:
    stages = devices * (1 if placement == "linear" else 2)
    room = None if spare is None else stages // devices + spare
    check(
        solve_pipeline(
            PipelineProblem(stages, microbatches, 6, 9, 4, comm, room, devices=devices, placement=placement),
            effort=0.05,
        )
    )


@pytest.mark.parametrize(
    ("problem", "gap"),
    [
        (PipelineProblem(8, 32, comm=11), 0.0),
        (PipelineProblem(8, 32, comm=20), 0.0),
        (PipelineProblem(8, 16, comm=15, max_activations=8, placement="v"), 0.1),
        (PipelineProblem(16, 16, comm=30, placement="interleaved", devices=4), 0.0),
    ],
)
def test_long_sends_are_hidden_where_they_can_be(problem: PipelineProblem, gap: float) -> None:
    table = solve_pipeline(problem, effort=0)
    check(table)
    assert table.certificate.gap <= gap
