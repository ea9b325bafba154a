"""Named schedules: each is complete, acyclic, within the memory it claims, and one of one's own takes a few lines."""

import pytest

from superscaler.errors import ScheduleError, UsageError
from superscaler.scheduler.certified import named_pipeline
from superscaler.scheduler.constructive import Orders, Shape, check, find, named, orders, peak_activations, schedules
from superscaler.scheduler.pipeline import PipelineProblem

DEVICES, MICROBATCHES = 4, 8
STAGES_PER_DEVICE = {"linear": 1, "v": 2, "interleaved": 2, "bidirectional": 1}


def shape_for(name: str, placement: str) -> Shape:
    stages = DEVICES * STAGES_PER_DEVICE[placement]
    return Shape(stages, DEVICES, MICROBATCHES, placement, find(name).passes)


@pytest.mark.parametrize("name", sorted(schedules()))
def test_every_schedule_is_complete_and_acyclic(name: str) -> None:
    for placement in find(name).placements:
        result = orders(name, shape_for(name, placement))
        assert len(result) == DEVICES
        assert find(name).doc


def test_the_published_ones_are_all_there() -> None:
    wanted = {"gpipe", "1f1b", "interleaved_1f1b", "chimera", "zb_h1", "zb_v", "v_half", "v_min", "dualpipe_v", "3f1b"}
    assert wanted <= set(schedules())


@pytest.mark.parametrize(
    ("name", "makespan", "activations"),
    [
        ("gpipe", 1100, 32),
        ("1f1b", 1100, 8),
        ("zb_h1", 1030, 8),
        ("zb_v", 995, 16),
        ("v_half", 1045, 10),
        ("v_min", 1075, 8),
    ],
)
def test_known_lengths_and_peaks_at_eight_by_thirtytwo(name: str, makespan: int, activations: int) -> None:
    placement = find(name).placements[0]
    stages, cost = (16, 5) if placement == "v" else (8, 10)
    table = named_pipeline(PipelineProblem(stages, 32, cost, cost, cost, placement=placement), name)
    assert table.makespan == makespan
    steps = orders(name, Shape(stages, 8, 32, placement))
    assert max(map(peak_activations, steps)) == activations


def test_one_f_one_b_of_two_devices_reads_as_in_the_paper() -> None:
    first, last = orders("1f1b", Shape(2, 2, 3))
    assert [kind[0] + str(j) for kind, _, j in first] == ["f0", "f1", "b0", "w0", "f2", "b1", "w1", "b2", "w2"]
    assert [kind[0] + str(j) for kind, _, j in last] == ["f0", "b0", "w0", "f1", "b1", "w1", "f2", "b2", "w2"]


def test_a_schedule_of_ones_own() -> None:
    @named("one_by_one")
    def one_by_one(shape: Shape) -> Orders:
        """One micro-batch after another."""
        kinds = ("forward", "backward", "weight")
        return [[(kind, d, j) for j in range(shape.microbatches) for kind in kinds] for d in range(shape.devices)]

    assert one_by_one is schedules()["one_by_one"].build
    table = named_pipeline(PipelineProblem(3, 4, max_activations=1), "one_by_one")
    assert table.makespan == 4 * (3 * 20 + 10)


def broken(change: str) -> Orders:
    steps = orders("1f1b", Shape(2, 2, 2))
    if change == "missing":
        steps[1].pop()
    if change == "twice":
        steps[0].append(("forward", 0, 0))
    if change == "elsewhere":
        steps[0].append(steps[1].pop())
    if change == "cycle":
        steps[1].insert(0, steps[1].pop(1))
    return steps


@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "missing"), ("twice", "comes twice"), ("elsewhere", "belongs on device 1"), ("cycle", "a cycle")],
)
def test_static_checks_name_what_is_wrong(change: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check(Shape(2, 2, 2), broken(change))


def test_a_schedule_for_another_placement_is_refused() -> None:
    with pytest.raises(UsageError, match="placement"):
        orders("zb_v", Shape(4, 4, 8))
