"""Ops: each row of a call is an op of the Graph, split as its rule allows, on inputs that lie as it needs them."""

from __future__ import annotations

from typing import NamedTuple

from superscaler.errors import SplitError
from superscaler.ir.check import limits
from superscaler.ir.check.fault import Place, fault
from superscaler.ir.check.moves import mismatch
from superscaler.ir.check.scope import Scope, Terms, args_key
from superscaler.ir.graph import Op
from superscaler.ir.layout import Layout, Partial
from superscaler.ir.program import Call, Row
from superscaler.ir.rules import specs
from superscaler.ir.rules.rule import Rule, Splits, check_splits, op_layouts


def partial_kinds(layout: Layout) -> set[str]:
    """The ways in which a value in this layout is partial."""
    return {state.kind for _, state in layout.states if isinstance(state, Partial)}


class Held(NamedTuple):
    """What a value is known to hold. ``origin``: how a partial value was cut into terms (0: it is complete)."""

    tensor: str
    layout: Layout
    terms: Terms = None
    origin: int = 0


# Ops whose result may share the storage of an operand, besides the family of views.
SHARING = frozenset({"superscaler.cast", "aten.slice.Tensor", "aten.select.int"})
Signature = tuple[tuple[Layout, ...], tuple[Layout, ...]]


class Ops:
    """Judges rows, each combination of op and splits once."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._signatures: dict[tuple[int, Splits, str, frozenset[str]], Signature] = {}
        self._row_texts: dict[int, str] = {}
        self._shared: dict[int, tuple[frozenset[int], ...]] = {}

    def shares(self, definition: int) -> tuple[frozenset[int], ...]:
        """For each result of a definition, the numbers of the inputs that it may be a view of."""
        found = self._shared.get(definition)
        if found is None:
            found = self._shared[definition] = self._sharing(definition)
        return found

    def _sharing(self, number: int) -> tuple[frozenset[int], ...]:
        definition = self.scope.entry.definitions[number]
        views = [frozenset((i,)) for i in range(definition.inputs)]
        for row in definition.rows:
            family = specs()[row.target][0] if row.target in specs() else ""
            through = family == "view" or row.target in SHARING
            base = frozenset[int]().union(*(views[n] for n in row.ins)) if through else frozenset[int]()
            views += [base] * len(row.outs)
        return tuple(views[n] for n in definition.outs)

    def call(self, call: Call, ins: list[Held], times: frozenset[str], place: Place) -> list[Held]:
        """What the results of a call hold. ``times``: the time axes at whose indices it runs."""
        definition = self.scope.entry.definitions[call.definition]
        held = list(ins)
        for row in definition.rows:
            held += self._row(row, call, held, times, place)
        return [held[number] for number in definition.outs]

    def _row(self, row: Row, call: Call, held: list[Held], times: frozenset[str], place: Place) -> list[Held]:
        index = call.base + row.offset
        op = self._op(row, index, place)
        rule = self.scope.rule(index)
        ins, outs = self._signature(op, rule, row.splits, call.mesh, times, place)
        if len(row.ins) != len(op.inputs) or len(row.outs) != len(op.outputs):
            raise fault("malformed plan", f"op {op.name} has {len(op.inputs)} inputs, {len(row.ins)} given", place)
        origins = [self._reads(op, k, held[n], ins[k], place) for k, n in enumerate(row.ins)]
        return [self._result(index, op, k, row.splits, layout, origins) for k, layout in enumerate(outs)]

    def _op(self, row: Row, index: int, place: Place) -> Op:
        graph = self.scope.graph
        if not 0 <= index < len(graph.ops):
            raise fault("changed op", f"{row.target} stands for op number {index} of {len(graph.ops)}", place)
        op = graph.ops[index]
        if row.target != op.target:
            raise fault("changed op", f"{row.target} runs where the graph has {op.target}", place, f"op: {op.name}")
        if not self._same_args(row, op, index):
            raise fault(
                "changed op", f"op {op.name} ({op.target}) runs with {list(row.args)}", place,
                right=f"{list(op.args)}, as in the graph",
            )  # fmt: skip
        return op

    def _same_args(self, row: Row, op: Op, index: int) -> bool:
        if row.args is op.args:
            return True
        text = self._row_texts.get(id(row))
        if text is None:
            text = self._row_texts[id(row)] = repr(row.args)
        return text == self.scope.args_text(index) or args_key(row.args) == args_key(op.args)

    def _signature(
        self, op: Op, rule: Rule, splits: Splits, mesh: str, times: frozenset[str], place: Place
    ) -> Signature:
        key = (id(rule), splits, mesh, times)
        found = self._signatures.get(key)
        if found is None:
            self._judge(op, rule, splits, mesh, times, place)
            found = self._signatures[key] = op_layouts(rule, splits, mesh, self.scope.space)
            if any(len(partial_kinds(layout)) > 1 for layout in found[1]):
                raise fault("mixed partials", f"op {op.name} would be partial in different ways at once", place)
        return found

    def _judge(self, op: Op, rule: Rule, splits: Splits, mesh: str, times: frozenset[str], place: Place) -> None:
        space = self.scope.space
        axes = {axis.name: axis for axis in space.axes}
        if len({axis for axis, _ in splits}) != len(splits):
            raise fault("illegal split", f"op {op.name} is split twice along one axis", place)
        for name, split in splits:
            if name not in axes or (axes[name].kind == "space" and name not in space.mesh(mesh).axes):
                raise fault("illegal split", f"op {op.name} is split along {name!r}, which mesh {mesh!r} lacks", place)
            if axes[name].kind == "time" and name not in times:
                raise fault(
                    "wrong time index", f"op {op.name} is split along {name!r}, but runs at no index of it", place
                )
            size = rule.dims[split.dim].size if split.dim in rule.dims else 1
            if split.extent < 1 or split.inner < 1 or size // (split.extent * split.inner) > limits.INTERVALS:
                raise fault("illegal split", f"op {op.name} is split along {name!r} by digit {split}", place)
        try:
            check_splits(op, rule, splits)
        except SplitError as e:
            raise fault("illegal split", e.what, place, *e.details, right=e.hint) from e

    def _reads(self, op: Op, k: int, have: Held, need: Layout, place: Place) -> int:
        """The origin of what op reads as input ``k``; raises unless it is that tensor, whole and in that layout."""
        if have.tensor != op.inputs[k]:
            raise fault(
                "wrong tensor", f"op {op.name} ({op.target}) reads {have.tensor!r} as its input {k}", place,
                right=f"tensor {op.inputs[k]!r}",
            )  # fmt: skip
        if have.terms is not None:
            raise fault(
                "partial read as complete", f"op {op.name} reads {have.tensor!r}, which has the terms "
                f"{sorted(have.terms)} only", place,
            )  # fmt: skip
        if have.layout != need:
            kind, why = mismatch(have.layout, need) or ("wrong layout", "")
            raise fault(
                kind, f"op {op.name} ({op.target}) reads tensor {have.tensor!r} held as {have.layout}", place, why,
                right=f"{need}",
            )  # fmt: skip
        return have.origin

    def _result(self, index: int, op: Op, k: int, splits: Splits, layout: Layout, origins: list[int]) -> Held:
        if not layout.partial:
            return Held(op.outputs[k], layout)
        cut = tuple(split for split in splits if split[0] in layout.partial)
        return Held(op.outputs[k], layout, None, self.scope.origin("op", index, k, cut, tuple(origins)))
