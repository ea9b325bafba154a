"""Explaining a plan: where a tensor lives, who computes, sends and receives it, and why. Only the plan is read."""

from __future__ import annotations

from superscaler.errors import UsageError, did_you_mean
from superscaler.ir.entry import Contents, refuse_no_plan
from superscaler.ir.explain.explanation import Explanation, Section, explanation, shortened
from superscaler.ir.explain.op import explain_module, explain_op
from superscaler.ir.explain.state import explain_state
from superscaler.ir.explain.worker import explain_worker
from superscaler.ir.summary import summary

_DIGITS = 19
"""A number of so many is no worker's."""


def explain(plan: Contents, subject: str | None = None) -> Explanation:
    """The explanation of a state tensor, an op, a module or a worker (``3`` or ``worker 3``), by name.

    Without a subject: of the plan, with what can be asked about. Raises :class:`UsageError` for an unknown name.
    """
    refuse_no_plan(plan)
    if subject is None:
        return _whole(plan)
    number = subject.lower().removeprefix("worker").strip(" :")
    if number.isdecimal() and len(number) < _DIGITS:
        if int(number) >= plan.workers:
            raise UsageError(f"the plan has no worker {number}", hint=f"0 to {plan.workers - 1}")
        return explain_worker(plan, int(number))
    for tensor in plan.state:
        if tensor.name == subject or plan.model.get("aliases", {}).get(subject) == tensor.name:
            return explain_state(plan, tensor)
    ops = {op.name for entry in plan.entries.values() for op in entry.graph.ops}
    if subject in ops:
        return explain_op(plan, subject)
    modules = _modules(plan)
    if subject in modules:
        return explain_module(plan, subject)
    known = [*(t.name for t in plan.state), *modules, *ops]
    raise UsageError(f"the plan has no parameter, op, module or worker {subject!r}", hint=did_you_mean(subject, known))


def _modules(plan: Contents) -> list[str]:
    """Paths of modules, outer ones too, in the order of their ops."""
    found: dict[str, None] = {}
    for entry in plan.entries.values():
        for path in dict.fromkeys(op.module for op in entry.graph.ops):
            parts = path.split(".")
            found.update(dict.fromkeys(".".join(parts[: i + 1]) for i in range(len(parts))))
    found.pop("", None)
    return list(found)


def _whole(plan: Contents) -> Explanation:
    state = [t.name for t in plan.state if t.kind == "parameter"]
    outer = [path for path in _modules(plan) if "." not in path]
    return explanation(
        str(summary(plan)),
        ask_about=[
            f"a worker: 0 to {plan.workers - 1}",
            *([f"a parameter: {', '.join(shortened(state, 6, 'parameters'))}"] if state else []),
            *([f"a module: {', '.join(shortened(outer, 8, 'modules'))}"] if outer else []),
            "an op: its name as a module's explanation lists it",
        ],
    )


__all__ = ["Explanation", "Section", "explain"]
