"""The scheduling problem of a real plan: its pipeline, its memory, its bounds."""

from __future__ import annotations

from functools import cache
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph
from superscaler.plans import parse
from superscaler.plans.fit import Making
from superscaler.scheduler.entry_problem import EntryProblem, entry_problem
from superscaler.scheduler.problem import makespan, memory_events
from superscaler.scheduler.stage_flow import stage_flow
from superscaler.scheduler.stage_orders import fitting, shape_of, starts_under
from superscaler.scheduler.tasks import schedule
from superscaler.trace import trace
from superscaler.transforms.assemble import assemble
from superscaler.transforms.lower import lower
from superscaler.transforms.optimize import with_optimizer
from tests.test_exactness import gpt


@cache
def graph() -> Graph:
    model, args = gpt(16, layers=8, hidden=32, heads=2, vocab=32, context=32)
    return trace(model, args).graph


def making(plan: str) -> Making:
    return Making(graph(), Cluster.local(4), parse(plan))


def problem_of(plan: str) -> EntryProblem:
    made = making(plan)
    return entry_problem(lower(made.tasks()), made.cluster)


@pytest.mark.parametrize(("plan", "placement", "devices"), [
    ("pipeline:stages=4,microbatches=4", "linear", 4),
    ("pipeline:stages=8,microbatches=4,schedule=zb_v", "v", 4),
    ("pipeline:stages=6,microbatches=4,schedule=interleaved_1f1b,chunks=3", "interleaved", 2),
    ("pipeline:stages=4,microbatches=4,schedule=chimera", "v", 2),
    ("megatron:tensor=2,pipeline=2,microbatches=4,schedule=zb_v", "v", 2),
])  # fmt: skip
def test_the_placement_is_seen_over_classes_of_devices(plan: str, placement: str, devices: int) -> None:
    shape = shape_of(problem_of(plan))
    assert shape is not None
    assert (shape.placement, shape.devices) == (placement, devices)


def test_interlaced_stages_have_no_regular_place() -> None:
    assert shape_of(problem_of("interlaced:stages=2,microbatches=4")) is None


def test_the_schedules_that_go_with_a_v() -> None:
    assert {"zb_v", "v_half", "v_min", "dualpipe_v", "gpipe"} <= set(fitting(problem_of(V)))
    assert not {"1f1b", "zb_h1", "interleaved_1f1b", "3f1b"} & set(fitting(problem_of(V)))


V = "pipeline:stages=8,microbatches=8,schedule=zb_v"
PLANS = [
    V,
    "pipeline:stages=4,microbatches=8,schedule=zb_h1",
    "megatron:tensor=2,pipeline=2,microbatches=4,schedule=zb_v",
]


@pytest.mark.parametrize("plan", PLANS)
def test_no_bound_of_the_pipeline_inside_exceeds_a_schedule_of_the_whole(plan: str) -> None:
    entry = problem_of(plan)
    inside = stage_flow(entry)
    assert inside is not None
    for name in fitting(entry):
        starts, _ = starts_under(entry, entry.problem(), name)
        assert inside.bound({}).value <= makespan(entry.problem(), starts)


@pytest.mark.parametrize("plan", PLANS)
def test_memory_is_counted_as_the_workers_hold_it(plan: str) -> None:
    """Within what the arena loses to gaps, and to what is held only while a task or transfer is posted."""
    made = making(plan)
    lowered = lower(made.tasks())
    entry = entry_problem(lowered, made.cluster)
    programs = made.entry(made.tasks()).programs
    problem = entry.problem()
    starts, _ = starts_under(entry, problem, lowered.tasks.order)
    for device in range(entry.devices):
        level = peak = entry.fixed.get(device, 0)
        for _, change, _ in memory_events(problem, starts, device):
            level += change
            peak = max(peak, level)
        assert level == entry.fixed.get(device, 0)
        arena = programs[device].arena
        assert 0.8 * arena <= peak <= 1.25 * arena


class TopHeavy(nn.Module):
    """Blocks of several layers with a long chain of small ops between them, more layers at last than at first."""

    def __init__(self) -> None:
        super().__init__()
        self.sines = (20, 20, 20, 20, 10, 10, 10, 10)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(16, 16) for _ in range(1 if sines == 20 else 3)) for sines in self.sines
        )

    def forward(self, x: Tensor) -> Tensor:
        for block, sines in zip(self.layers, self.sines, strict=True):
            for layer in cast(nn.ModuleList, block):
                x = x + layer(x)
            for _ in range(sines):
                x = torch.sin(x)
        return x.square().mean()


@pytest.mark.parametrize("microbatches", [2, 6])
def test_the_optimizer_of_one_stage_need_not_wait_for_the_other_stage_of_its_device(microbatches: int) -> None:
    """In a V the last stages' gradients are ready first: their optimizers fill gaps, and add nothing to a bound."""
    traced = with_optimizer(trace(TopHeavy(), (torch.randn(24, 16),)).graph, ss.AdamW())
    plan = parse(f"pipeline:stages=4,microbatches={microbatches},schedule=solve,placement=v")
    made = Making(traced, Cluster.preset("h100", devices=2), plan)
    lowered = lower(made.tasks())
    entry = entry_problem(lowered, made.cluster)
    inside = stage_flow(entry)
    assert inside is not None
    optimizers = [sum(j.duration for j in entry.jobs if j.kind == "optimizer" and j.device == d) for d in range(2)]
    assert inside.tail < min(optimizers)
    found = schedule(lowered, made.cluster).certificate
    assert inside.bound({}).value <= found.makespan
    assert found.bound <= found.makespan


def test_a_bound_within_memory_holds_for_what_is_solved_within_it() -> None:
    made = making("pipeline:stages=4,microbatches=6,schedule=solve")
    lowered = lower(made.tasks())
    entry = entry_problem(lowered, made.cluster)
    inside = stage_flow(entry)
    assert inside is not None
    free = assemble(lowered, schedule(lowered, made.cluster))
    memory = dict.fromkeys(range(4), int(max(program.arena for program in free.programs) * 0.6))
    tight = schedule(lowered, made.cluster, memory=memory)
    assert inside.bound(memory).value <= tight.certificate.makespan
    assert free.certificate.makespan < tight.certificate.makespan
