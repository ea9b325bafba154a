"""What travels between processes arrives as it was sent."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import small_plans as plans
import torch

from superscaler.errors import WorkerError
from superscaler.ir.region import Region, Span
from superscaler.runtime.progress import Progress
from superscaler.runtime.station import Outcome, Station, pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_every_kind(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    found = unpack(pickle.loads(pickle.dumps(pack({"x": [(tensor, 3)]}))))["x"][0]
    assert found[1] == 3
    assert found[0].dtype == dtype
    assert torch.equal(found[0], tensor)


def test_regions_stay_regions() -> None:
    region = Region([Span.of([(0, 2), (4, 6)]), Span.full(3)])
    found = unpack(pickle.loads(pickle.dumps(pack((region, region[0])))))
    assert found == (region, region[0])
    assert isinstance(found[0], Region)
    assert isinstance(found[1], Span)


def test_a_tensor_that_arrived_can_be_written_to() -> None:
    sent = torch.zeros(2)
    arrived = unpack(pack(sent))
    arrived.fill_(1)
    assert sent.sum() == 0


def test_errors_come_back_as_data() -> None:
    outcome: Outcome = Station().call("parts", [])
    assert isinstance(outcome.error, WorkerError)
    found = pickle.loads(pickle.dumps(WorkerError("worker 1 failed", "in a task", hint="launch again")))
    assert str(found) == "worker 1 failed\n  in a task\n  try: launch again"


def test_progress_is_seen_by_others_and_its_file_goes_away() -> None:
    mine = Progress.create(3)
    theirs = Progress.open(mine.path, 3)
    assert [mine.of(w) for w in range(3)] == [-1, -1, -1]
    theirs.numbers[1:2][0] = 7
    assert mine.of(1) == 7
    mine.unlink()
    assert not Path(mine.path).exists()
    theirs.numbers[1] = 8
    assert mine.of(1) == 8
    mine.close()


def test_the_plan_itself_travels() -> None:
    plan = plans.pipelined()
    assert pickle.loads(pickle.dumps(plan)) == plan
