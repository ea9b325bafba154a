"""Whether tokens may be computed piece by piece: no op but attention looks at other tokens, however many there are.

Decoding with a cache runs graphs of a few tokens over a long sequence. That is what the model computes only if each op
between attentions has one row of its result for each token, made of that token's rows alone, and if the model does not
turn to something else where tokens are many (a window, stretched positions) or one.
"""

from __future__ import annotations

from itertools import zip_longest

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Shard
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import dim_of, split_state
from superscaler.transforms.cache import ATTENTION

_CAUSAL = 3  # its argument that says so: of no meaning for a single token


def verify_tokenwise(graph: Graph) -> None:
    """Raise :class:`PlanError` for an op, not attention, whose result for a token depends on others or their number.

    ``graph``: of the inputs ``ids`` and ``positions`` [1, tokens] and ``keep``, which picks the tokens of the logits.
    """
    walk = _Walk(graph)
    if walk.tokens == 1:
        return
    for op in graph.ops:
        why = walk.follow(op)
        if why:
            raise PlanError(
                f"{op.name} cannot be computed token by token: {why}", op.where,
                hint="a model of which only attention (scaled_dot_product_attention) looks at other tokens",
            )  # fmt: skip
    if any(name in walk.rows for name in graph.outputs.values()):
        raise PlanError("the model's logits are those of all tokens", hint="those of the tokens that `keep` names")


def verify_alike(few: Graph, many: Graph) -> None:
    """Raise :class:`PlanError` where the model's ops over ``few`` tokens are not those over ``many``.

    Views are not compared: those of a single token are fewer.
    """
    for ours, theirs in zip_longest(_computing(few), _computing(many)):
        if ours is None or theirs is None or _what(ours) != _what(theirs):
            differs = " and ".join(f"{op.name} {op.where}" for op in (ours, theirs) if op is not None)
            raise PlanError(
                f"the model computes something else over {_tokens(many)} tokens than over {_tokens(few)}",
                f"the first difference: {differs}",
                hint="fewer tokens in all: a window, or stretched positions, may begin at some number of them",
            )


def _computing(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if rule_for(op, graph).family != "view"]


def _what(op: Op) -> tuple[object, ...]:
    args = op.args[:_CAUSAL] + op.args[_CAUSAL + 1 :] if op.target == ATTENTION else op.args
    return op.module, op.target, args


def _tokens(graph: Graph) -> int:
    return graph.tensor[graph.inputs[0]].shape[1]


class _Walk:
    """``rows``: the tensors that have something for each token, and along which dim; ``picks``: what is of ``keep``."""

    def __init__(self, graph: Graph) -> None:
        ids, positions, keep = graph.inputs
        self.graph = graph
        self.tokens = _tokens(graph)
        self.rows = {ids: self._along(1), positions: self._along(1)}
        self.picks = {keep}

    def _along(self, dim: int) -> Shard:
        return Shard(dim, self.tokens, 1)

    def follow(self, op: Op) -> str | None:
        """Find the rows of the op's outputs; or say why it does not compute each token by itself."""
        if op.target == ATTENTION:
            if any(self.rows.get(name) != self._along(2) for name in op.inputs[:3]):
                return "its queries, keys and values are not one of each for every token"
            self.rows[op.outputs[0]] = self._along(2)
            return None
        if not any(name in self.rows for name in op.inputs):
            if op.inputs and self.picks.issuperset(op.inputs):
                self.picks.update(op.outputs)
            return None
        if rule_for(op, self.graph).family == "gather" and not self.picks.isdisjoint(op.inputs):
            return None
        return self._split(op)

    def _split(self, op: Op) -> str | None:
        """The op's dim of tokens, as if it were split along it, one token a part."""
        rule = rule_for(op, self.graph)
        found = {
            dim_of(rule, self.rows[name], output=False, index=i)
            for i, name in enumerate(op.inputs)
            if name in self.rows
        }
        split = found.pop()
        if found:
            return "it relates tokens to one another"
        if split is None:
            return "it needs all tokens at once"
        for i, name in enumerate(op.inputs):
            if name not in self.rows and split_state(rule, split, output=False, index=i) is not None:
                return f"{name} has a row for each place among the tokens at hand, which `positions` does not say"
        for i, name in enumerate(op.outputs):
            rows = split_state(rule, split, output=True, index=i)
            if not isinstance(rows, Shard):
                return "it reduces over tokens"
            self.rows[name] = rows
        return None
