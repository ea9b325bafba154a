"""Which messages go by mailboxes: those that a run of a plan has once."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import small_plans as plans
import torch
from torch import Tensor, nn

import superscaler as ss
from superscaler.ir.plan import Plan
from superscaler.runtime.comm import Key
from superscaler.runtime.inline import InlineComm
from superscaler.runtime.mail import received, receivers

Message = tuple[Key, int, int]  # key, sender, receiver


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


def known(plan: Plan) -> set[Message]:
    """What every worker says that it receives."""
    return {(key, sender, worker) for worker in range(plan.workers) for key, sender in received(plan, worker)}


@pytest.mark.parametrize(
    "script",
    [
        "pipeline:stages=4,microbatches=4",
        "pipeline:stages=8,microbatches=4,placement=v,schedule=zb_v",
        "pipeline:stages=4,microbatches=4,placement=bidirectional,schedule=chimera",
        "megatron:pipeline=2,tensor=2,microbatches=2",
    ],
)
def test_every_message_of_a_step_is_known_beforehand(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(8, 8)
    plan = ss.compile(model, (x,), cluster=ss.Cluster.local(4), plan=script, optimizer=ss.SGD(), evaluate=False)
    sent: Counter[Message] = Counter()
    send = InlineComm.send

    def noted(comm: InlineComm, tensor: Tensor, peer: int, key: Key) -> None:
        sent[key, comm.worker, peer] += 1
        send(comm, tensor, peer, key)

    monkeypatch.setattr(InlineComm, "send", noted)
    with ss.launch(plan, model, backend="inline") as job:
        job.step(x)
    assert set(sent.values()) == {1}
    assert known(plan) == {*sent}
    for worker in range(4):
        assert receivers(plan, worker) == {receiver for _, sender, receiver in sent if sender == worker}


def test_a_message_that_a_run_has_twice_has_no_mailbox() -> None:
    """The second might come before the first has been taken."""
    plan = plans.pipelined(2)
    entry = plan.entries["train"]
    first, last = entry.programs
    assert received(plan, 0) == [((1, 0), 1), ((1, 1), 1)]
    again = next(i for i in first.order if first.blocks[i.block].kind == "recv")
    programs = (msgspec.structs.replace(first, order=(*first.order, again)), last)
    twice = msgspec.structs.replace(plan, entries={"train": msgspec.structs.replace(entry, programs=programs)})
    assert received(twice, 0) == [((1, 1), 1)]
