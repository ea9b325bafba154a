"""Mutable buffers: batch norm's statistics over the global batch, or per worker, by the user's choice."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import superscaler as ss
from superscaler.errors import PlanError, TraceError
from tests.cases import slow
from tests.exact import Subject, as_double, compare, reference, run

SGD = ss.SGD(lr=0.1, momentum=0.9)


class Norm(nn.BatchNorm2d):
    """Batch norm over ``parts`` equal parts of the batch, written out: what workers with a part each would compute."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__(channels)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        if self.parts == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        means, variances, out = [], [], []
        for part in x.chunk(self.parts):
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            out.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0))
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            self.running_mean.lerp_(torch.stack(means).mean(0), self.momentum)
            self.running_var.lerp_(torch.stack(variances).mean(0), self.momentum)
        return torch.cat(out)


class Residual(nn.Module):
    """Two convolutions beside the identity (He et al. 2016)."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(Norm(channels, parts) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(x + self.norms[1](self.second(inner)))


class ResNet(nn.Module):
    def __init__(self, parts: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = Norm(4, parts)
        self.blocks = nn.Sequential(Residual(4, parts), Residual(4, parts))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return F.cross_entropy(self.head(F.max_pool2d(x, 2).mean((2, 3))), labels)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 5


def resnet(parts: int = 1) -> ResNet:
    torch.manual_seed(0)
    return ResNet(parts)


@lru_cache(maxsize=1)
def subject() -> Subject:
    return Subject(resnet(), batch())


@pytest.mark.parametrize(("plan", "devices"), [
    ("data_parallel:ways=1", 1),
    ("data_parallel:ways=2", 2),
    slow("data_parallel:ways=4", 4),
    ("zero:level=3,data=3", 3),
    ("megatron:data=2,tensor=2", 4),
    ("pipeline:stages=2", 2),
    ("recompute:ops=all+data_parallel:ways=2", 2),
])  # fmt: skip
def test_statistics_over_the_global_batch(plan: str, devices: int) -> None:
    """Loss, gradients, parameters and running statistics are those of one worker, however the batch is split."""
    subject().assert_exact(plan, devices, SGD)


def test_micro_batches_are_refused() -> None:
    with pytest.raises(PlanError, match="cannot be micro-batched") as refused:
        subject().compile("data_parallel:microbatches=2", 1, SGD)
    assert "batch_norm" in str(refused.value)


@pytest.mark.parametrize(("plan", "devices", "choice", "parts"), [
    slow("data_parallel:ways=2", 2, "worker", 2),
    slow("data_parallel:microbatches=3", 1, "worker", 3),
    ("data_parallel:ways=3,microbatches=2", 3, "worker", 6),
    ("megatron:tensor=2,pipeline=2,microbatches=2", 4, "worker", 2),
    slow("data_parallel:ways=1", 1, 3, 3),
    ("data_parallel:ways=2,microbatches=2", 2, 4, 4),
])  # fmt: skip
def test_statistics_per_worker(plan: str, devices: int, choice: Any, parts: int) -> None:
    """Each part of the batch is normalised with its own statistics; the running ones follow their mean."""
    size = 8 if parts == 4 else 6
    model, written_out = as_double(resnet()), as_double(resnet(parts))
    args = [as_double(x) for x in batch(size)]
    compiled = ss.compile(
        model, args, cluster=ss.Cluster.local(devices), plan=plan, optimizer=SGD, dtype="f64", batch_norm=choice
    )
    compare(run(compiled, model, args, {}), reference(written_out, args, {}, None, SGD), SGD)


def test_parts_must_be_equal() -> None:
    with pytest.raises(TraceError, match="no 4 equal parts"):
        ss.compile(resnet(), batch(6), cluster=ss.Cluster.local(1), batch_norm=4)


def test_evaluation_reads_the_running_statistics() -> None:
    model = as_double(resnet())
    args = [as_double(x) for x in batch()]
    plan = ss.compile(model, args, cluster=ss.Cluster.local(2), plan="data_parallel:ways=2", optimizer=SGD, dtype="f64")
    with ss.launch(plan, model, backend="inline") as job:
        for _ in range(2):
            job.step(*args)
        found = job.evaluate(*args)
        trained = as_double(resnet())
        trained.load_state_dict(job.state_dict())
    assert found["loss"] == pytest.approx(trained.eval()(*args).item(), rel=1e-9)


class Averaged(nn.Module):
    """An exponential average of the parameters, kept in a buffer by the forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("average", torch.zeros(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average = 0.9 * self.average + 0.1 * self.linear.weight
        return (self.linear(x) - x @ self.average).square().mean()


@pytest.mark.parametrize(("plan", "devices"), [
    ("data_parallel:ways=2,microbatches=2", 2),
    ("megatron:tensor=3", 3),
    ("zero:level=3,data=3", 3),
])  # fmt: skip
def test_an_average_of_the_parameters(plan: str, devices: int) -> None:
    torch.manual_seed(0)
    Subject(Averaged(), (torch.randn(4, 3),)).assert_exact(plan, devices, SGD)
