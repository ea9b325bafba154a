"""Plans drawn at random: every op may be split, replicated or computed again as chance has it; all are exact."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from superscaler.ir.graph import Op
from superscaler.plans import Planner, Stage
from superscaler.plans.megatron import megatron
from superscaler.plans.placement import DIRECTION, stages_per_device
from superscaler.scheduler.constructive import PLACEMENTS, Shape

SCHEDULES = {
    "linear": ("gpipe", "1f1b", "solve", "zb_h1"),
    "v": ("gpipe", "zb_v", "v_half", "v_min", "dualpipe_v", "solve"),
    "interleaved": ("gpipe", "interleaved_1f1b", "solve"),
    "bidirectional": ("chimera", "solve"),
}
FEWEST = {"dualpipe_v": 2, "interleaved_1f1b": 1}
"""Schedules that take micro-batches in multiples of so many for each group of devices."""
AXES = ("data", "one", "two")


@dataclass(frozen=True)
class RandomPlan:
    """A plan script: ``groups`` of ``data`` × ``one`` × ``two`` devices; ``share`` of the ops are split by ``seed``.

    ``placement``: of the stages on the groups. ``again``: the share of modules recomputed. ``sharded``,
    ``early``, ``offloaded``: the shares of parameters whose state is in shards (along ``shards``), whose gradients are
    reduced early, whose state is in host memory. ``backward``: of the ops of the backward that are split by themselves.
    """

    seed: int
    data: int = 1
    one: int = 1
    two: int = 1
    groups: int = 1
    microbatches: int = 1
    schedule: str = "1f1b"
    share: float = 0.5
    again: float = 0.0
    placement: str = "linear"
    shards: str = "data"
    sharded: float = 0.0
    early: float = 0.0
    offloaded: float = 0.0
    backward: float = 0.0

    @property
    def devices(self) -> int:
        return self.each * self.groups

    @property
    def each(self) -> int:
        """How many devices a group has."""
        return self.data * self.one * self.two

    @property
    def batch(self) -> int:
        """The least batch that this plan can take apart: it has both directions of a pipeline in it."""
        return self.data * self.microbatches

    def __call__(self, p: Planner) -> None:
        dice = random.Random(self.seed)
        p.split_batch(self.data, axis="data")
        p.axis("one", self.one)
        p.axis("two", self.two)
        self._place(p, dice)
        forward = p.find()
        for op in forward:
            for axis, ways in (("one", self.one), ("two", self.two)):
                if ways > 1 and dice.random() < self.share:
                    self._split(p, op, axis, ways, dice)
            for backward in p.backward_of(op):
                for axis, ways in (("one", self.one), ("two", self.two)):
                    if ways > 1 and dice.random() < self.backward:
                        self._split(p, backward, axis, ways, dice)
        p.recompute([op for op in forward if dice.random() < self.again])
        self._keep(p, dice)
        p.order(self.schedule)

    def _place(self, p: Planner, dice: random.Random) -> None:
        """The stages on their groups, the devices of which each stage has in an order of its own."""
        shape = Shape(self.groups * stages_per_device(self.placement), self.groups, self.microbatches, self.placement)
        both = self.placement == "bidirectional"
        if both:
            p.split_batch(2, axis=DIRECTION)
        p.microbatches(self.microbatches // 2 if both else self.microbatches)
        for stage in p.stages(shape.stages):
            groups = [shape.device(stage.index), *([self.groups - 1 - stage.index] if both else [])]
            self._assign(p, stage, groups, dice)

    def _assign(self, p: Planner, stage: Stage, groups: list[int], dice: random.Random) -> None:
        devices: list[int] = []
        for group in groups:
            devices += dice.sample(range(group * self.each, (group + 1) * self.each), self.each)
        outer = [DIRECTION] if len(groups) > 1 else []
        p.assign(stage, devices, axes=[*outer, *dice.sample(AXES, 3)])

    def _split(self, p: Planner, op: Op, axis: str, ways: int, dice: random.Random) -> None:
        # A dim that both axes and the batch split must have room for all of their parts.
        least = self.batch * self.one * self.two
        dims = [d for d in p.dims(op) if p.size(op, d) >= least]
        if dims and dice.random() < 0.9:
            p.split(op, dice.choice(dims), ways, axis=axis)
        else:
            p.replicate(op, axis=axis)

    def _keep(self, p: Planner, dice: random.Random) -> None:
        """What is kept of the state, and where."""
        sharded = [name for name in p.parameters if dice.random() < self.sharded]
        for whole in (False, True):
            names = [name for name in sharded if dice.random() < 0.5 or whole]
            p.shard_state(names, axis=self.shards, parameter=whole)
            sharded = [name for name in sharded if name not in names]
        p.reduce_early([name for name in p.parameters if dice.random() < self.early])
        p.offload_state([name for name in p.parameters if dice.random() < self.offloaded])


@dataclass(frozen=True)
class RandomTurns:
    """Ops drawn at random take turns in parts, inside ``megatron``, and others are computed again.

    ``share``: of the ops that take turns; ``again``: of those computed again.
    """

    seed: int
    parts: int
    share: float
    again: float
    stages: int = 1
    microbatches: int = 1

    def __call__(self, p: Planner) -> None:
        dice = random.Random(self.seed)
        megatron(pipeline=self.stages, microbatches=self.microbatches)(p)
        chosen = [op for op in p.find() if dice.random() < self.share]
        axis = p.turns([*chosen, *(reader for op in chosen for reader in p.readers(op))], self.parts)
        for op in chosen:
            dims = [d for d in p.dims(op) if p.size(op, d) >= self.parts]
            if dims and dice.random() < 0.5:
                p.prefer(op, dice.choice(dims), self.parts, axis=axis)
        p.recompute([op for op in p.find() if dice.random() < self.again])


@st.composite
def random_plans(draw: st.DrawFn, batch: int, *, most: int = 8, micro: bool = True) -> RandomPlan:
    """A plan for a batch of this size on at most ``most`` devices, with micro-batches or without."""
    placement = draw(st.sampled_from([p for p in PLACEMENTS if p != "bidirectional" or (micro and batch > 1)]))
    groups = draw(st.sampled_from([2, 4])) if placement == "bidirectional" else draw(st.integers(1, 3))
    directions = 2 if placement == "bidirectional" else 1
    data = draw(st.integers(1, min(3, batch // directions, most // groups)))
    one = draw(st.integers(1, min(4, most // (groups * data))))
    two = draw(st.integers(1, min(3, most // (groups * data * one))))
    microbatches = directions * draw(st.integers(1, batch // (data * directions))) if micro else 1
    possible = [s for s in SCHEDULES[placement] if microbatches % (FEWEST.get(s, 0) * groups or 1) == 0]
    share = st.sampled_from([0.0, 0.5, 1.0])
    return RandomPlan(
        draw(st.integers(0, 2**31)),
        data,
        one,
        two,
        groups,
        microbatches,
        draw(st.sampled_from(possible)),
        draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        draw(st.sampled_from([0.0, 0.3, 1.0])),
        placement,
        draw(st.sampled_from(AXES)),
        draw(share),
        draw(share),
        draw(share),
        draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    )
