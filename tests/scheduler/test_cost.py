"""What tasks cost on devices that are not alike, or that no device is like."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.errors import ClusterError
from superscaler.ir.cluster import DEVICES, LINKS, Device, Link


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).square().mean()


def predicted(kinds: tuple[Device, ...], link: Link = LINKS["pcie"]) -> int:
    """Microseconds of a step of two workers with half the batch each."""
    cluster = ss.Cluster("mixed", kinds, tuple(range(2)), 8, link, link)
    plan = ss.compile(Loss(), (torch.randn(8, 64),), cluster=cluster, plan="data_parallel:ways=2", evaluate=False)
    return plan.entries["train"].certificate.makespan


def test_who_works_in_step_with_a_slower_device_waits_for_it() -> None:
    fast = DEVICES["cpu"]
    slow = msgspec.structs.replace(fast, speed=0.1, overhead=1e-4)
    both_slow = predicted((slow, slow))
    assert predicted((fast, slow)) == predicted((slow, fast)) == both_slow > predicted((fast, fast))


@pytest.mark.parametrize("figures", [
    {"speed": 1e-300}, {"bandwidth": 1e-300}, {"flops": {"float32": 1e-300}}, {"overhead": 1e300},
])  # fmt: skip
def test_devices_on_which_a_task_would_take_for_ever(figures: dict[str, object]) -> None:
    device = msgspec.structs.replace(DEVICES["cpu"], **figures)
    with pytest.raises(ClusterError, match=r"would take .* more than 1,000,000 s") as refused:
        predicted((device, device))
    assert "try: " in str(refused.value)


@pytest.mark.parametrize("link", [Link("slow", 1e-300, 0.0), Link("far", 1e9, 1e300)])
def test_a_link_on_which_a_message_would_take_for_ever(link: Link) -> None:
    with pytest.raises(ClusterError, match="would take"):
        predicted((DEVICES["cpu"], DEVICES["cpu"]), link)
