"""Accumulate and Collect: one contribution to a value that is formed over time."""

from __future__ import annotations

from superscaler.ir.check.instances import Instances
from superscaler.ir.check.moves import Reason, gathered, mismatch
from superscaler.ir.check.ops import Held
from superscaler.ir.check.sums import over_time, points
from superscaler.ir.layout import Layout, Partial
from superscaler.ir.program import Accumulate, Collect


def contribute(run: Instances, step: Accumulate | Collect) -> None:
    """The contribution is a term of the target, lies as it does, and stands for the index at which it runs."""
    have = run.read(step.src, step.at)
    run.writable(step.into)
    covers = over_time(run.role, step)
    if not set(covers) <= run.times(step.at):
        raise run.wrong("wrong time index", f"a term of {run.name(step.into)} at no index of {list(covers)}")
    addends = _addends(run, step, have)
    _lies_alike(run, step, have, covers)
    domain = run.bodies.domains[step.into]
    run.add(step.into, run.slot(step.into, step.at), points(domain, addends, covers, step.at, run.scope.micro))
    origins = run.bodies.addend_origins.setdefault(step.into, {})
    for addend in addends:
        if origins.setdefault(addend, have.origin) != have.origin:
            raise run.wrong("mixed partials", f"the terms of {run.name(step.into)} come from different splits")


def _addends(run: Instances, step: Accumulate | Collect, have: Held) -> tuple[int, ...]:
    """Which addends of the target's domain the contribution is."""
    into = run.role.program.values[step.into]
    domain = run.bodies.domains[step.into]
    if isinstance(step, Accumulate) and step.term >= 0:
        found = _named_term(run, step, have)
    elif have.tensor != into.tensor:
        raise run.wrong(
            "wrong tensor", f"{run.name(step.into)} is given {have.tensor!r}", right=f"tensor {into.tensor!r}"
        )
    elif domain.collects:
        if have.terms != run.role.terms[step.into]:
            raise run.wrong("not a term", f"{run.name(step.into)} is given other terms of its sum")
        found = domain.addends
    else:
        count = len(run.scope.addends.get(into.tensor, ())) or 1
        found = tuple(range(count)) if have.terms is None else tuple(sorted(have.terms))
    strange = set(found) - set(domain.addends)
    if strange:
        raise run.wrong(
            "not a term", f"{run.name(step.into)} is given term {min(strange)}", right=f"terms {list(domain.addends)}"
        )
    return found


def _named_term(run: Instances, step: Accumulate, have: Held) -> tuple[int, ...]:
    into = run.role.program.values[step.into]
    inputs = run.scope.addends.get(into.tensor, ())
    if step.term >= len(inputs) or inputs[step.term] != have.tensor or have.terms is not None:
        raise run.wrong(
            "not a term", f"tensor {have.tensor!r} is added to {run.name(step.into)} as its term {step.term}",
            right=f"tensor {inputs[step.term]!r}" if step.term < len(inputs) else f"a sum of {len(inputs)} terms",
        )  # fmt: skip
    return (step.term,)


def _lies_alike(run: Instances, step: Accumulate | Collect, have: Held, covers: tuple[str, ...]) -> None:
    into = run.role.program.values[step.into].layout
    why = mismatch(have.layout.without(*covers), into) or _kind_reason(run, step, have.layout, covers)
    if why is not None:
        raise run.wrong(
            why[0], f"{run.name(step.into)} is given {have.tensor!r} as {have.layout}", why[1],
            right=f"{into}, and an index of the time axes that it is formed over",
        )  # fmt: skip


def _kind_reason(run: Instances, step: Accumulate | Collect, have: Layout, covers: tuple[str, ...]) -> Reason | None:
    if isinstance(step, Collect):
        return gathered(run.scope.space, have, covers)[1]
    for axis in covers:
        state = have.state(axis)
        if isinstance(state, Partial) and state.kind != "sum":
            return "wrong kind of partial", f"along {axis!r} the parts are terms of a {state.kind}, and are added"
    return None
