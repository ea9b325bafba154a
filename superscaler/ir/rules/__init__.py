"""The table of split rules: every op that may appear in a plan, by family.

One file per family holds ``RULES: dict[target, Spec]``. An op may be executed by a worker only if a rule names it, so
a plan from a stranger cannot run anything else.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from superscaler.errors import SplitError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.rules import discovered
from superscaler.ir.rules.rule import Rule, Shape, Spec, parse_rule

FAMILIES = (
    "pointwise",
    "matmul",
    "reduction",
    "view",
    "gather",
    "norm",
    "attention",
    "loss",
    "optimizer",
    "random",
    "creation",
    "convolution",
)


@lru_cache(maxsize=1)
def specs() -> dict[str, tuple[str, Spec]]:
    """target -> (family, spec), of all families."""
    table: dict[str, tuple[str, Spec]] = {}
    for family in FAMILIES:
        rules: dict[str, Spec] = import_module(f"{__name__}.{family}").RULES
        for target, spec in rules.items():
            table[target] = (family, spec)
    return table


def register(target: str, family: str, spec: Spec) -> None:
    """Add the rule of a user's own op, in this process. Raises :class:`SplitError` for an op that has one."""
    if specs().get(target, (family, spec))[0] != family:
        raise SplitError(
            f"op {target} has a rule already, in the family {specs()[target][0]!r}", hint="another name for the op"
        )
    specs()[target] = (family, spec)
    for key in [key for key in _interned if key[0] == target]:
        del _interned[key]


def has_rule(target: str) -> bool:
    """Whether an op may appear in a plan: the table names it, the user registered it, or its rule was discovered."""
    return target in specs() or discovered.known(target)


_interned: dict[Any, Rule] = {}


def rule_for(op: Op, graph: Graph) -> Rule:
    """The rule of ``op`` at its shapes; the same object for equal ops. Raises :class:`SplitError` if it has none."""
    known = graph.rules.get(op.name)
    if known is not None and known[0] is op:
        return known[1]
    rule = _rule_at_shapes(op, graph)
    graph.rules[op.name] = op, rule
    return rule


def _rule_at_shapes(op: Op, graph: Graph) -> Rule:
    ins = tuple(graph.tensor[name].shape for name in op.inputs)
    outs = tuple(graph.tensor[name].shape for name in op.outputs)
    key = (op.target, repr(op.args), ins, outs)
    rule = _interned.get(key)
    if rule is None:
        rule = _interned[key] = build_rule(op, ins, outs)
    return rule


def build_rule(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """Instantiate the table's rule for these shapes."""
    found = specs().get(op.target)
    if found is None:
        rule = discovered.find(op, ins, outs)
        if rule is not None:
            return rule
        where = f" at {op.source}" if op.source else ""
        raise SplitError(
            f"no split rule for op {op.target}{where}",
            f"op: {op.name}, module: {op.module or '-'}",
            hint="`superscaler ops` lists those that have one",
        )
    family, spec = found
    built = spec.rule if isinstance(spec.rule, str) else spec.rule(op, ins, outs)
    if isinstance(built, Rule):
        return built
    return parse_rule(built, ins, outs, family=family, linear=spec.linear, contiguous=spec.contiguous)
