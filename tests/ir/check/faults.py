"""Fault injection: a valid plan with one thing made wrong, in every way that a plan can be wrong.

A generator looks for places where its fault is a real one (the plan would hang, crash, or compute something else) and
gives None where there is none, so no injected fault leaves a plan that means the same. Each states the kinds of fault
by which the check may name it.

The 14 real bugs of parallel training that FACTS §6 groups (TrainVerify's classes) are among them:

 1. the all-reduce behind a row-parallel linear is missing
     ``missing all-reduce``
 2. the gradient of a replicated parameter is not reduced over its group
     ``gradient not reduced``
 3. one stage's share of a tied gradient (or of the global norm) is left out
     ``term left out``
 4. an all-gather stands where a reduce-scatter belongs, or the other way round
     ``wrong collective``
 5. the reduction runs over the wrong axis (data for tensor)
     ``wrong axis``
 6. two ranks are in each other's groups
     ``mis-grouped``
 7. a stage sends to, or receives from, the wrong rank
     ``wrong rank of a piece``, ``wrong stage``
 8. a shard is cut out of the wrong place
     ``wrong shard``
 9. an op runs on the wrong operand (another layer's weight)
     ``wrong operand``
10. the loss, or a mean, is scaled by the wrong number
     ``wrong scale``
11. what every rank has whole is summed as if each had a term
     ``counted by every rank``
12. replicated gradients count once per rank in the global norm
     ``not masked``
13. a micro-batch is accumulated twice, or not at all
     ``micro-batch twice``, ``micro-batch lost``
14. a reduction is launched before the last term is in
     ``reduction too early``
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from superscaler.ir.plan import Plan

Generator = Callable[[Plan, random.Random], Plan | None]


@dataclass(frozen=True)
class FaultClass:
    """A way of making a plan wrong. ``named``: the kinds of fault by which the check may name it. ``bug``: its number
    among the 14, or 0."""

    name: str
    group: str
    named: frozenset[str]
    inject: Generator
    bug: int


CLASSES: dict[str, FaultClass] = {}


def injects(name: str, group: str, *named: str, bug: int = 0) -> Callable[[Generator], Generator]:
    """Register a generator."""

    def register(generator: Generator) -> Generator:
        assert name not in CLASSES, name
        CLASSES[name] = FaultClass(name, group, frozenset(named), generator, bug)
        return generator

    return register


def injected(plan: Plan, seed: int, each: int = 1, only: str = "") -> Iterator[tuple[FaultClass, Plan]]:
    """Up to ``each`` faults of every class (or ``only`` one) in a plan; equal ones are not repeated."""
    for fault_class in [CLASSES[only]] if only else CLASSES.values():
        rng = random.Random(f"{seed} {fault_class.name}")
        seen: list[Plan] = []
        for _ in range(each):
            broken = fault_class.inject(plan, rng)
            if broken is not None and broken != plan and broken not in seen:
                seen.append(broken)
                yield fault_class, broken


def load_all() -> dict[str, FaultClass]:
    """All classes; they register themselves when their modules are imported."""
    import faults_communication
    import faults_memory
    import faults_offload
    import faults_order
    import faults_values

    del faults_communication, faults_memory, faults_offload, faults_order, faults_values
    return CLASSES
