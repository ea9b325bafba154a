"""Propagation: from the splits that a plan states to a split of every op, one axis at a time.

Facts ("this tensor is split along this digit") flow from the anchors in both directions through ops that can follow
for free: views, pointwise ops, norms, attention, matmuls. What no fact reaches is then decided in topological order by
the bytes that each choice would move. An op that nothing splits is computed by every device of the axis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from superscaler.errors import SplitError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Axis, Partial, Shard, State
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Rule, Split, check_splits, dim_of, split_state
from superscaler.ir.task import Reason

Decided = dict[str, Split | None]
HEAVY = ("matmul", "attention", "convolution")


class Propagation:
    """The decisions along one axis. ``eligible`` ops may be split; others stay whole (the axis is not on their mesh).

    ``fits``: whether an op may be split so, and ``room``: whether a state tensor may lie so, given the axes decided
    before.
    """

    def __init__(
        self,
        graph: Graph,
        axis: Axis,
        *,
        eligible: Callable[[Op], bool] = lambda op: True,
        fits: Callable[[Op, Split], bool] = lambda op, split: True,
        room: Callable[[str, Shard], bool] = lambda tensor, shard: True,
        passes: Callable[[Op], bool] = lambda op: True,
    ) -> None:
        self.graph = graph
        self.axis = axis
        self.eligible = eligible
        self.fits = fits
        self.room = room
        self.passes = passes
        self.decided: Decided = {}
        self.reasons: dict[str, Reason] = {}
        self.homes: dict[str, Shard | None] = {}
        self.pinned: set[str] = set()
        self._facts: deque[tuple[str, Shard]] = deque()
        self._seen: set[tuple[str, Shard]] = set()

    def rule(self, op: Op) -> Rule:
        """The split rule of an op."""
        return rule_for(op, self.graph)

    def anchor(self, op: Op, split: Split | None) -> None:
        """Fix how ``op`` is split (None: not at all); facts flow at the next :meth:`flow`.

        Raises :class:`SplitError` if its rule does not allow that, or if it has been fixed otherwise.
        """
        if op.name in self.decided:
            if self.decided[op.name] == split:
                return
            raise SplitError(
                f"{op.name} is split twice along axis {self.axis.name!r}",
                f"as {self.decided[op.name] or 'whole'} and as {split or 'whole'}",
                hint="one of the two, or another axis for the second",
            )
        if split is not None:
            check_splits(op, self.rule(op), ((self.axis.name, split),))
            if split.extent < self.axis.ways:
                raise SplitError(
                    f"{op.name}: dim {split.dim!r} of {split.extent} cannot be split {self.axis.ways} ways",
                    f"axis: {self.axis.name}",
                    hint="fewer ways, or another dim",
                )
        self._decide(op, split, "script")

    def wish(self, op: Op, split: Split, reason: Reason = "wish") -> None:
        """Split ``op`` so if nothing has decided about it yet and its rule allows it."""
        if op.name not in self.decided and self.eligible(op):
            legal = self._legal(op, split)
            if legal is not None:
                self._decide(op, legal, reason)
                self.flow()

    def home(self, tensor: str, shard: Shard) -> None:
        """State that an input or a state tensor is split, and let the fact flow."""
        self.homes.setdefault(tensor, shard)
        self._fact(tensor, shard)
        self.flow()

    def pin(self, tensor: str, shard: Shard | None) -> None:
        """Fix how a state tensor is kept, whatever reads it: no fact flows from or to it."""
        self.homes[tensor] = shard
        self.pinned.add(tensor)

    def _fact(self, tensor: str, state: State | None) -> None:
        if tensor in self.pinned:
            return
        if isinstance(state, Shard) and (tensor, state) not in self._seen:
            self._seen.add((tensor, state))
            self._facts.append((tensor, state))

    def _decide(self, op: Op, split: Split | None, reason: Reason) -> None:
        self.decided[op.name], self.reasons[op.name] = split, reason
        if split is None or (op.phase == "backward" and reason in ("script", "wish")):
            return  # the forward does not follow what the backward is told of itself
        rule = self.rule(op)
        for i, name in enumerate(op.inputs):
            # How state is kept says nothing of how a gradient is best computed.
            if op.phase != "optimizer" or self.graph.tensor[name].kind != "activation":
                self._fact(name, split_state(rule, split, output=False, index=i))
        for i, name in enumerate(op.outputs):
            self._fact(name, split_state(rule, split, output=True, index=i))

    def flow(self) -> None:
        """Let all pending facts reach the ops around them."""
        while self._facts:
            tensor, shard = self._facts.popleft()
            producer = self.graph.producer.get(tensor)
            if producer is None:
                if self.graph.tensor[tensor].kind != "input" and self.room(tensor, shard):
                    self.homes.setdefault(tensor, shard)
            else:
                self._follow(producer, shard, output=True, index=producer.outputs.index(tensor))
            for op in self.graph.consumers[tensor]:
                self._follow(op, shard, output=False, index=op.inputs.index(tensor))

    def _follow(self, op: Op, shard: Shard, *, output: bool, index: int) -> None:
        if op.name in self.decided or not self.eligible(op):
            return
        split = self._legal(op, dim_of(self.rule(op), shard, output=output, index=index))
        if split is not None:
            self._decide(op, split, "follows")

    def _legal(self, op: Op, split: Split | None) -> Split | None:
        """``split`` if the op may be split so along this axis."""
        if split is None or split.extent < self.axis.ways or not self.fits(op, split):
            return None
        return split

    def settle(self) -> Decided:
        """Decide what no fact reached, in topological order, by the bytes each choice moves."""
        states: dict[str, State | None] = {}
        for op in self.graph.ops:
            if op.name not in self.decided:
                found = self._cheapest(op, states) if self.eligible(op) else None
                self.decided[op.name], self.reasons[op.name] = found or (None, "")
                self._drop_facts()
            split = self.decided[op.name]
            rule = self.rule(op)
            for i, name in enumerate(op.outputs):
                states[name] = split_state(rule, split, output=True, index=i) if split else None
            if split is not None:
                self._claim_homes(op, rule, split)
        return self.decided

    def _drop_facts(self) -> None:
        self._facts.clear()

    def _claim_homes(self, op: Op, rule: Rule, split: Split) -> None:
        for i, name in enumerate(op.inputs):
            state = split_state(rule, split, output=False, index=i)
            kind = self.graph.tensor[name].kind
            if kind not in ("activation", "input") and isinstance(state, Shard) and self.room(name, state):
                self.homes.setdefault(name, state)

    def _cheapest(self, op: Op, states: Mapping[str, State | None]) -> tuple[Split | None, Reason] | None:
        """The choice of least cost; none if nothing that ``op`` reads is split."""
        rule = self.rule(op)
        free = {n for n in op.inputs if n not in self.graph.producer and n not in self.homes}
        have = [self.homes.get(n) if n not in states else states[n] for n in op.inputs]
        if not any(isinstance(s, Partial | Shard) for s in have):
            return None
        best, least = None, self._cost(op, rule, None, have, free)
        for split in self._candidates(op, rule, have):
            cost = self._cost(op, rule, split, have, free)
            if cost < least:
                best, least = split, cost
        return best, "cost"

    def _candidates(self, op: Op, rule: Rule, have: Iterable[State | None]) -> list[Split]:
        found: list[Split] = []
        partial = tuple(i for i, s in enumerate(have) if isinstance(s, Partial))
        for i, state in enumerate(have):
            if isinstance(state, Shard):
                split = self._legal(op, dim_of(rule, state, output=False, index=i))
                if split is not None:
                    found.append(split)
        if self.passes(op):
            found += [Split("+", inputs=group) for group in rule.linear if set(group) <= set(partial)]
        return found

    def _cost(self, op: Op, rule: Rule, split: Split | None, have: list[State | None], free: set[str]) -> float:
        """Bytes moved to bring the inputs where ``split`` needs them, plus what its outputs will cost later."""
        bytes_ = self.graph.tensor
        total = 0.0
        for i, (name, state) in enumerate(zip(op.inputs, have, strict=True)):
            need = split_state(rule, split, output=False, index=i) if split else None
            if name not in free:
                total += move_cost(state, need, bytes_[name].bytes)
        outs = sum(bytes_[n].bytes for n in op.outputs)
        if split is None:
            return total + outs * 0.25 + (4.0 * outs if rule.family in HEAVY else 0.0)
        for i, name in enumerate(op.outputs):
            if isinstance(split_state(rule, split, output=True, index=i), Partial):
                total += 0.0 if split.passes else 1.5 * bytes_[name].bytes
        return total


def move_cost(have: State | None, need: State | None, size: int) -> float:
    """Bytes that a change of state along one axis moves, in units of the whole tensor's (ring algorithms)."""
    if have == need or have is None:
        return 0.0
    if isinstance(have, Partial):
        return 1e30 if isinstance(need, Partial) else (1.0 if isinstance(need, Shard) else 2.0) * size
    if isinstance(need, Partial):
        return 1e30
    return 1.0 * size
