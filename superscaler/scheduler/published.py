"""The published schedules, in a few lines each."""

from __future__ import annotations

from superscaler.scheduler.constructive import Orders, Shape, Step, named


@named("gpipe", placements=("linear", "interleaved", "v"))
def gpipe(shape: Shape) -> Orders:
    """All forwards, then all backwards (Huang et al. 2019)."""
    result: Orders = []
    for device in range(shape.devices):
        mine = shape.stages_of(device)
        forwards: list[Step] = [("forward", s, j) for s in mine for j in range(shape.microbatches)]
        result.append(forwards + [x for s in reversed(mine) for j in range(shape.microbatches) for x in _back(s, j)])
    return result


@named("1f1b")
def one_forward_one_backward(shape: Shape) -> Orders:
    """After P-d forwards on device d, a backward after each forward (Narayanan et al. 2019, PipeDream-Flush)."""
    result: Orders = []
    for device in range(shape.devices):
        warm = min(shape.devices - device, shape.microbatches)
        steps: list[Step] = [("forward", device, j) for j in range(warm)]
        for j in range(shape.microbatches):
            steps += _back(device, j)
            if j + warm < shape.microbatches:
                steps.append(("forward", device, j + warm))
        result.append(steps)
    return result


def _back(stage: int, j: int) -> list[Step]:
    """A backward that is not split: both gradients at once."""
    return [("backward", stage, j), ("weight", stage, j)]
