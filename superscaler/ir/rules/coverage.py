"""Coverage: how many of a model's op instances have a split rule, by hand or by discovery."""

from __future__ import annotations

from collections import Counter

import msgspec

from superscaler.errors import SplitError
from superscaler.ir.graph import Graph
from superscaler.ir.rules import rule_for


class Coverage(msgspec.Struct, frozen=True):
    """Op instances of a Graph. ``ruled``: those that the table has a rule for; ``discovered``: those whose rule was
    found by execution; ``split``: those of either kind that have a dim to split; ``missing``: target -> how many have
    none."""

    instances: int
    ruled: int
    discovered: int
    split: int
    missing: dict[str, int]

    @property
    def share(self) -> float:
        """Of all instances, those with a rule."""
        return (self.ruled + self.discovered) / self.instances if self.instances else 1.0

    def __str__(self) -> str:
        lines = [
            f"{self.share:.2%} of {self.instances:,} op instances have a rule "
            f"({self.ruled:,} by hand, {self.discovered:,} discovered); {self.split:,} can be split"
        ]
        lines += [f"  no rule: {target}, {count} times" for target, count in self.missing.items()]
        return "\n".join(lines)


def coverage(graph: Graph) -> Coverage:
    """The coverage of a Graph as it stands: discovery adds to it beforehand."""
    ruled = discovered = split = 0
    missing: Counter[str] = Counter()
    for op in graph.ops:
        try:
            rule = rule_for(op, graph)
        except SplitError:
            missing[op.target] += 1
            continue
        ruled += not rule.discovered
        discovered += rule.discovered
        split += any(not dim.whole and dim.size > 1 for dim in rule.dims.values())
    return Coverage(len(graph.ops), ruled, discovered, split, dict(missing.most_common()))
