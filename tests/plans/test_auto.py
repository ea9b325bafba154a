"""Plans chosen by their costs."""

from __future__ import annotations

import msgspec
import pytest
import torch

import superscaler as ss
from superscaler import models
from superscaler.errors import InfeasiblePlan, PlanError
from superscaler.plans.auto import Auto


@pytest.fixture(scope="module")
def tiny():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model, example = models.build("gpt", "tiny", layers=1)
    return model, example(8)


def compiled(tiny, auto: Auto, cluster: ss.Cluster) -> ss.Plan:  # type: ignore[no-untyped-def]
    model, inputs = tiny
    return ss.compile(model, inputs, cluster=cluster, plan=auto, optimizer=ss.SGD())


def test_the_shortest_step_of_all_products_is_chosen(tiny) -> None:  # type: ignore[no-untyped-def]
    auto = Auto()
    plan = compiled(tiny, auto, ss.Cluster.local(2))
    assert {(t.data, t.tensor, t.pipeline) for t in auto.tried} == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}
    assert auto.chosen == min(t for t in auto.tried if not t.refused)
    assert ss.simulate(plan).seconds == pytest.approx(auto.chosen.seconds)
    assert max(p.peak for p in plan.entries["train"].programs) == auto.chosen.peak


def test_evaluation_is_planned_as_training_is(tiny) -> None:  # type: ignore[no-untyped-def]
    plan = compiled(tiny, Auto(), ss.Cluster.local(2))
    train, evaluate = plan.entries["train"], plan.entries["eval"]
    assert [p.workers for p in train.programs] == [p.workers for p in evaluate.programs]


def test_what_does_not_fit_is_not_chosen(tiny) -> None:  # type: ignore[no-untyped-def]
    free = Auto()
    compiled(tiny, free, ss.Cluster.local(2))
    peaks = sorted(t.peak for t in free.tried if not t.refused)
    limit = (peaks[0] + peaks[-1]) // 2
    cluster = ss.Cluster.local(2)
    small = msgspec.structs.replace(cluster, kinds=(msgspec.structs.replace(cluster.kinds[0], memory=limit),))
    bound = Auto()
    compiled(tiny, bound, small)
    assert bound.chosen is not None
    assert bound.chosen.peak <= limit
    assert any(t.refused.startswith("peak") for t in bound.tried)


def test_recomputation_is_tried_where_memory_asks_for_it_and_nothing_fits_is_said(tiny) -> None:  # type: ignore[no-untyped-def]
    auto = Auto()
    with pytest.raises(InfeasiblePlan, match=r"no plan for 2 devices fits \(\d+ tried\)"):
        compiled(tiny, auto, ss.Cluster.local(2, memory=1e-5))
    assert any(t.recomputes for t in auto.tried)


def test_the_number_of_micro_batches_is_kept(tiny) -> None:  # type: ignore[no-untyped-def]
    auto = Auto(microbatches=2)
    plan = compiled(tiny, auto, ss.Cluster.local(2))
    assert {t.microbatches for t in auto.tried} == {2}
    assert plan.entries["train"].microbatches == 2


def test_nothing_applies(tiny) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlanError, match="applies"):
        compiled(tiny, Auto(microbatches=16), ss.Cluster.local(2))
