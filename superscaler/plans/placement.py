"""Stages on devices: one each, two each in a V, several in turn, or each on two devices for either direction."""

from __future__ import annotations

from collections.abc import Sequence

from superscaler.errors import UsageError, did_you_mean
from superscaler.ir.argument import whole
from superscaler.plans.planner import Planner, Stage
from superscaler.scheduler.constructive import PLACEMENTS, Shape, find

DIRECTION = "direction"
"""The axis of a bidirectional pipeline: half of the batch from either end."""


def placement_for(schedule: str, placement: str = "") -> str:
    """Where stages lie for ``schedule``, unless ``placement`` says. Raises :class:`UsageError` for an unknown one."""
    if placement and placement not in PLACEMENTS:
        raise UsageError(f"no placement is called {placement!r}", hint=did_you_mean(placement, PLACEMENTS))
    return placement or ("linear" if schedule == "solve" else find(schedule).placements[0])


def stages_per_device(placement: str, chunks: int = 0) -> int:
    """How many stages a device has: of an interleaved pipeline ``chunks``, two if that is 0.

    Raises :class:`UsageError` for another number than the placement has.
    """
    fixed = {"linear": 1, "v": 2, "bidirectional": 1}.get(placement)
    if whole(chunks, "chunks") < 0 or (fixed and chunks not in (0, fixed)):
        raise UsageError(f"chunks={chunks}: placement {placement} has {fixed or '1 or more'} stages on a device",
                         hint="chunks=0, as if nothing were said")  # fmt: skip
    return fixed or chunks or 2


def pipeline_stages(
    p: Planner,
    groups: Sequence[Sequence[int]],
    microbatches: int,
    placement: str = "linear",
    *,
    chunks: int = 0,
    axes: Sequence[str] = (),
) -> list[Stage]:
    """Cut the model into stages and put each on one of ``groups`` of devices (row-major over ``axes``).

    On devices of different speed the stages take about equal time.

    ``v``: stage s of 2P on group min(s, 2P-1-s); ``interleaved``: on s % P; ``bidirectional``: on groups s and P-1-s,
    which take half of the micro-batches each.
    """
    count = len(groups)
    if placement == "bidirectional":
        if microbatches % 2 or count % 2:
            raise UsageError(
                f"a bidirectional pipeline takes even numbers, not {count} devices and {microbatches} micro-batches",
                hint=f"{count + count % 2} devices and {microbatches + microbatches % 2} micro-batches",
            )
        p.split_batch(2, axis=DIRECTION)
        p.microbatches(microbatches // 2)
        both = [[*groups[s], *groups[count - 1 - s]] for s in range(count)]
        stages = p.stages(count, both)
        for stage, devices in zip(stages, both, strict=True):
            p.assign(stage, devices, axes=(DIRECTION, *axes))
        return stages
    p.microbatches(microbatches)
    shape = Shape(count * stages_per_device(placement, chunks), count, microbatches, placement)
    where = [groups[shape.device(s)] for s in range(shape.stages)]
    stages = p.stages(shape.stages, where)
    for stage, devices in zip(stages, where, strict=True):
        p.assign(stage, devices, axes=axes)
    return stages
