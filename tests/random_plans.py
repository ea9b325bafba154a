"""Plans drawn at random: every op may be split, replicated or computed again as chance has it; all are exact."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from superscaler.ir.graph import Op
from superscaler.plans import Planner

SCHEDULES = ("gpipe", "1f1b", "solve", "zb_h1")


@dataclass(frozen=True)
class RandomPlan:
    """A plan script: ``data`` × ``one`` × ``two`` devices per stage; ``share`` of the ops are split as ``seed`` says.

    ``splits``: how often a chosen op is split rather than computed by all. ``again``: the share of modules recomputed.
    """

    seed: int
    data: int = 1
    one: int = 1
    two: int = 1
    stages: int = 1
    microbatches: int = 1
    schedule: str = "1f1b"
    share: float = 0.5
    again: float = 0.0

    @property
    def devices(self) -> int:
        return self.data * self.one * self.two * self.stages

    def __call__(self, p: Planner) -> None:
        dice = random.Random(self.seed)
        p.split_batch(self.data, axis="data")
        p.microbatches(self.microbatches)
        each = self.data * self.one * self.two
        p.axis("one", self.one)
        p.axis("two", self.two)
        for i, stage in enumerate(p.stages(self.stages)):
            devices = list(range(i * each, (i + 1) * each))
            dice.shuffle(devices)
            p.assign(stage, devices, axes=dice.sample(["data", "one", "two"], 3))
        forward = p.find()
        for op in forward:
            for axis, ways in (("one", self.one), ("two", self.two)):
                if ways > 1 and dice.random() < self.share:
                    self._split(p, op, axis, ways, dice)
        p.recompute([op for op in forward if dice.random() < self.again])
        p.order(self.schedule)

    def _split(self, p: Planner, op: Op, axis: str, ways: int, dice: random.Random) -> None:
        # A dim that both axes and the batch split must have room for all of their parts.
        least = self.data * self.microbatches * self.one * self.two
        dims = [d for d in p.dims(op) if p.size(op, d) >= least]
        if dims and dice.random() < 0.9:
            p.split(op, dice.choice(dims), ways, axis=axis)
        else:
            p.replicate(op, axis=axis)


@st.composite
def random_plans(draw: st.DrawFn, batch: int, *, most: int = 8, micro: bool = True) -> RandomPlan:
    """A plan for a batch of this size on at most ``most`` devices, with micro-batches or without."""
    stages = draw(st.integers(1, 2))
    data = draw(st.integers(1, min(3, batch, most // stages)))
    one = draw(st.integers(1, min(4, most // (stages * data))))
    two = draw(st.integers(1, min(3, most // (stages * data * one))))
    return RandomPlan(
        draw(st.integers(0, 2**31)),
        data,
        one,
        two,
        stages,
        draw(st.integers(1, batch // data)) if micro else 1,
        draw(st.sampled_from(SCHEDULES)),
        draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        draw(st.sampled_from([0.0, 0.3, 1.0])),
    )
