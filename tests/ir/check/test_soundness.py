"""Soundness: whatever is changed in a plan, the check refuses it or it still computes the same.

Changes are drawn blindly, at any place of a plan's data; what the check lets pass is run, and its loss, gradients and
state after two steps are compared with those of the plan as it was, on all replicas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import pytest
import torch
from compiled import Plan
from mutations import Mutations, data_of

import superscaler as ss
from superscaler.errors import CheckError, SuperscalerError
from superscaler.ir.check import UNEXPECTED, check
from superscaler.models import build
from superscaler.runtime.launch import launch

KINDS = (
    ("data_parallel:ways=2", 2, True),
    ("megatron:tensor=2,pipeline=2,microbatches=2", 4, True),
    ("megatron:data=2,tensor=2", 4, False),
    ("recompute:ops=all+megatron:data=2,pipeline=2,microbatches=2", 4, True),
    ("zero:level=3,data=2,microbatches=2", 2, True),
    ("co_shard:parts=2,data=2", 2, False),
    ("interlaced:stages=2,microbatches=2", 2, True),
)


class Subject:
    """A small model with dropout, its batch, and what a plan makes of them."""

    def __init__(self, kind: str, workers: int, clip: bool) -> None:
        torch.manual_seed(0)
        model, example = build("gpt", "tiny", layers=2, hidden=8, heads=2, vocab=16, context=8, dropout=0.1)
        self.model = model.double()
        self.batch = example(4)
        optimizer = ss.AdamW(clip_norm=1.0) if clip else ss.SGD(lr=0.1, momentum=0.9)
        cluster = ss.Cluster.local(workers)
        self.plan = ss.compile(
            self.model, self.batch, cluster=cluster, plan=kind, optimizer=optimizer, dtype="f64", evaluate=False
        )

    def run(self, plan: Plan) -> dict[str, list[torch.Tensor]]:
        """Everything that can be seen after two steps; replicas side by side."""
        seen: dict[str, list[torch.Tensor]] = {}
        with launch(plan, self.model, backend="inline", timeout=20) as job:
            losses = [job.step(*self.batch) for _ in range(2)]
            seen["loss"] = [torch.tensor(losses)]
            for held in (job.gradients(), job.state_dict(), job.optimizer_state()):
                for name, tensor in held.items():
                    seen.setdefault(f"{name} of {len(seen)}", []).append(tensor)
            for parts in job.local_state():
                for name, local in parts.items():
                    for region, tensor in local:
                        seen.setdefault(f"{name} {region}", []).append(tensor)
        return seen


@lru_cache(maxsize=1)
def subject(kind: str, workers: int, clip: bool) -> Subject:
    return Subject(kind, workers, clip)


def difference(one: dict[str, list[torch.Tensor]], other: dict[str, list[torch.Tensor]]) -> str:
    """The first thing in which two runs differ, or in which the replicas of the second do."""
    if one.keys() != other.keys():
        return "what there is"
    for name, tensors in one.items():
        for tensor in other[name]:
            if not torch.allclose(tensor, tensors[0], rtol=1e-7, atol=1e-8):
                return name
    return ""


def verdict(document: Any) -> Plan | None:
    """The plan, if it is one and the check lets it pass."""
    try:
        plan = msgspec.convert(document, Plan)
        check(plan)
    except msgspec.ValidationError:
        return None
    except CheckError as error:
        assert UNEXPECTED not in str(error), error  # noqa: PT017
        return None
    return plan


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_what_passes_computes_the_same(kind: tuple[str, int, bool]) -> None:
    given = subject(*kind)
    expected = given.run(given.plan)
    mutations = Mutations(data_of(given.plan), seed=len(kind[0]))
    passed = 0
    for _ in range(1000):
        place, document = mutations.draw()
        plan = verdict(document)
        if plan is None:
            continue
        passed += 1
        try:
            found = difference(expected, given.run(plan))
        except (SuperscalerError, RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            found = repr(error)
        assert not found, f"a change at {place} passed the check, and changed {found}"
    assert passed, "names and planned times may change"
