"""The three_f_one_b plan: what goes between its stages, and in which order they run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.program import Send, Slice
from tests.cases import slow


class Recycling(nn.Module):
    """Layers that run ``cycles`` times, each on what the last left; only the last has a gradient."""

    def __init__(self, cycles: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)) for _ in range(4)))
        self.cycles = cycles

    def forward(self, x: Tensor) -> Tensor:
        last = torch.zeros_like(x)
        for _ in range(self.cycles):
            last = self.layers(x + last.detach())
        return last.square().mean()


def compiled(cycles: int, stages: int = 2, microbatches: int = 8) -> ss.Plan:
    script = ss.plans.three_f_one_b(stages, microbatches)
    return ss.compile(
        Recycling(cycles), (torch.randn(8, 4),), cluster=ss.Cluster.local(stages), plan=script, evaluate=False
    )


def test_nothing_comes_back_to_the_stage_that_made_it() -> None:
    entry = compiled(3).entries["train"]
    sent: dict[str, set[str]] = {}
    for program in entry.programs:
        for block in program.blocks:
            for step in block.steps:
                if isinstance(step, Send):
                    route = entry.routes[step.route]
                    sent.setdefault(route.tensor, set()).add(f"{route.source.mesh}>{route.destination.mesh}")
    assert all(len(ways) == 1 for ways in sent.values()), sent


def test_activations_are_read_where_they_are_kept() -> None:
    """The backward of the last pass reads what its forward left, without copies."""
    for program in compiled(3).entries["train"].programs:
        for block in program.blocks:
            if block.kind == "backward":
                assert not [step for step in block.steps if isinstance(step, Slice) and program.values[step.src].over]


@pytest.mark.parametrize("cycles", [slow(2), 3, slow(4)])
def test_the_schedule_is_3f1b_however_often_the_layers_run(cycles: int) -> None:
    certificate = compiled(cycles).entries["train"].certificate
    assert certificate.baseline_name == "3f1b"
