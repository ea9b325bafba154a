"""The rule table for people: what ``superscaler ops`` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from superscaler.ir.rules import specs
from superscaler.ir.rules.rule import Spec


@dataclass(frozen=True)
class Row:
    """One target: its rule (an example of it, where it depends on ranks and arguments), the dims that can be split,
    and the groups of inputs through which partial sums may pass."""

    family: str
    target: str
    rule: str
    dims: tuple[str, ...]
    linear: str


def rows() -> list[Row]:
    """All targets by family, in the table's order."""
    return [_row(family, target, spec) for target, (family, spec) in specs().items()]


def _row(family: str, target: str, spec: Spec) -> Row:
    text = spec.rule if isinstance(spec.rule, str) else spec.shown
    names = re.findall(r"[A-Za-z_]\w*(?:\^\w+)?!?", text)
    kinds = {"max", "min", "sum", "logsumexp"}
    dims = dict.fromkeys(n.partition("^")[0] for n in names if not n.endswith("!") and n not in kinds)
    linear = " ".join("+".join(f"${i}" for i in group) for group in spec.linear)
    return Row(family, target, text.strip(), tuple(dims), linear)


def table() -> list[tuple[str, str, str, str, str]]:
    """Rows of text: family, target, rule, dims, linear."""
    return [(r.family, r.target, r.rule, " ".join(r.dims), r.linear) for r in rows()]
