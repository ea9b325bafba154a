"""A loss that is no number: named where the user wants that, let through otherwise."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler.errors import NonFiniteLoss, UsageError
from superscaler.ir.plan import Plan


class Root(nn.Module):
    """NaN where an input is negative, infinite where it is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x.sqrt()).sum()


@lru_cache(maxsize=1)
def plan() -> Plan:
    return ss.compile(
        Root(), (torch.ones(2, 3),), cluster=ss.Cluster.local(2), plan="data_parallel:ways=2", optimizer=ss.SGD(lr=0.1)
    )


@pytest.mark.parametrize("bad", [-1.0, math.inf])
def test_the_step_is_named(bad: float) -> None:
    with ss.launch(plan(), Root(), backend="inline", nan="raise") as job:
        job.step(torch.ones(2, 3))
        with pytest.raises(NonFiniteLoss, match=f"loss of step 2 is {'nan' if bad < 0 else 'inf'}"):
            job.step(torch.tensor([[1.0, 1.0, 1.0], [1.0, bad, 1.0]]))


def test_the_job_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    with ss.launch(plan(), Root(), backend="inline", nan="raise") as job:
        job.save_checkpoint(tmp_path / "good")
        with pytest.raises(NonFiniteLoss):
            job.step(-torch.ones(2, 3))
        assert not job.gradients()["scale"].isfinite().all()
        job.load_checkpoint(tmp_path / "good")
        assert math.isfinite(job.step(torch.ones(2, 3)))


def test_it_is_let_through_by_default() -> None:
    with ss.launch(plan(), Root(), backend="inline") as job:
        assert math.isnan(job.step(-torch.ones(2, 3)))


def test_an_unknown_choice() -> None:
    with pytest.raises(UsageError, match="unknown nan"):
        ss.launch(plan(), Root(), backend="inline", nan="rise")  # type: ignore[arg-type]
