"""Workspace: the most bytes that a task holds beside state and arena while it runs, as the runtime runs it.

What a task makes for itself lives from the op that makes it to the last that reads it, or, where another call reads it,
to the end of that call. Views have their base's memory; results in the arena are written there; updates overwrite the
state; some ops need room of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from superscaler.ir.graph import Graph, Op
from superscaler.ir.program import Accumulate, At, Collective, Commit, Mask, Slice, Step, Value
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.build import input_of
from superscaler.transforms.blocks import Body, Compute
from superscaler.transforms.group import Instance, gathered, instance
from superscaler.transforms.usage import at_of, reads, writes

Size = Callable[[int], int]  # bytes of a value
VIEWS = frozenset({"superscaler.reshape", "superscaler.expand", "superscaler.block", "aten.permute.default",
                   "aten.slice.Tensor", "aten.select.int"})  # fmt: skip
SPREAD = frozenset({"superscaler.expand", "aten.permute.default", "aten.slice.Tensor", "aten.select.int"})
"""Views that are not contiguous: a reshape of one is a copy."""
UPDATES: Mapping[str, tuple[int, ...]] = {
    "superscaler.adamw": (0, 2, 3), "superscaler.sgd": (0, 4), "superscaler.cache_append": (0,),
}  # fmt: skip
"""Ops that overwrite state: per output, the argument whose memory it takes."""
CLIPS = {"superscaler.adamw": 6, "superscaler.sgd": 3}
"""Optimizer steps, and which argument is the factor of clipping."""
HALF = ("bfloat16", "float16")
SCORES = (3, 6)
"""Tensors of the size of the scores that unfused attention holds at a time, forward and backward."""


def workspace(body: Body, values: Sequence[Value], graph: Graph, size: Size, elsewhere: Callable[[int], bool]) -> int:
    """Bytes. ``elsewhere``: whether a value lies in state, inputs or arena."""
    number: dict[Instance, int] = {}
    of: list[int] = []

    def named(value: int, at: At) -> int:
        """A number for each instance: those of different turns live side by side."""
        found = number.setdefault(instance(values, value, at), len(of))
        if found == len(of):
            of.append(value)
        return found

    steps = [_renumbered(step, named) for step in gathered(body.steps)]
    instances = replace(body, steps=steps)
    return _Task(instances, graph, lambda n: size(of[n]), lambda n: elsewhere(of[n])).peak()


def _renumbered(step: Step | Compute, named: Callable[[int, At], int]) -> Step | Compute:
    """A step with other numbers for its values."""
    at = step.at if isinstance(step, Compute) else at_of(step)
    if isinstance(step, Compute):
        ins, outs = (tuple(named(v, at) for v in found) for found in (step.ins, step.outs))
        return msgspec.structs.replace(step, ins=ins, outs=outs)
    fields = {f: getattr(step, f) for f in ("src", "dst", "into", "local", "state") if hasattr(step, f)}
    return msgspec.structs.replace(step, **{f: named(v, at) if v >= 0 else v for f, v in fields.items()})


@dataclass
class _Task:
    body: Body
    graph: Graph
    size: Size
    elsewhere: Callable[[int], bool]
    sums: set[int] = field(default_factory=set[int])
    products: dict[int, int] = field(default_factory=dict[int, int])
    committed: dict[int, int] = field(default_factory=dict[int, int])
    root: dict[int, int] = field(default_factory=dict[int, int])  # value -> the value whose memory it has
    spread: set[int] = field(default_factory=set[int])
    born: dict[int, int] = field(default_factory=dict[int, int])
    beside: dict[int, int] = field(default_factory=lambda: defaultdict[int, int](int))  # step -> bytes only then

    def peak(self) -> int:
        self.sums = _sums(self.body, self.elsewhere)
        self.products = _products(self.body, self.graph)
        self.committed = {step.src: step.state for step in self.body.steps if isinstance(step, Commit)}
        for number, step in enumerate(self.body.steps):
            if isinstance(step, Compute):
                self._computes(number, step)
            else:
                self._moves(number, step)
        return self._level()

    # --- what each step makes ----------------------------------------------------------------------------------------

    def _computes(self, number: int, step: Compute) -> None:
        op = self.graph.ops[step.op]
        for k, value in enumerate(step.outs):
            source = self._shares(op, step, k, value)
            if source is not None:
                self._alias(value, source, strided=op.target in SPREAD or source in self.spread)
            elif self.elsewhere(value) or value in self.sums:
                direct = len(step.outs) == 1 and (value not in self.sums or op.target == "aten.mm.default")
                self.beside[number] += 0 if direct or op.target in VIEWS else self.size(value)
            else:
                self._makes(number, value)
        self.beside[number] += self._room(op, step)

    def _shares(self, op: Op, step: Compute, k: int, value: int) -> int | None:
        """The operand whose memory an output has, if any."""
        if op.target in UPDATES and k < len(UPDATES[op.target]):
            number = input_of(op.args[UPDATES[op.target][k]])
            operand = None if number is None else step.ins[number]
            return operand if value in self.committed and self.committed[value] == operand else None
        if self.elsewhere(value) or value in self.sums or not step.ins:
            return None
        if op.target == "superscaler.cast":
            same = self.graph.tensor[op.inputs[0]].dtype == self.graph.tensor[op.outputs[0]].dtype
            return step.ins[0] if same else None
        if op.target in VIEWS:
            copied = op.target == "superscaler.reshape" and step.ins[0] in self.spread
            return None if copied else step.ins[0]
        return self.products.get(value)  # a bias is added by the product itself

    def _moves(self, number: int, step: Step) -> None:
        for value in writes(step):
            if isinstance(step, Accumulate) and step.src in self.sums:
                continue
            if isinstance(step, Slice | Mask) and not self.elsewhere(value):
                self._alias(value, step.src, strided=True)
            elif not self.elsewhere(value) and value not in self.born:
                self._makes(number, value)
        if isinstance(step, Collective):
            self.beside[number] += self._exchange(step)

    def _exchange(self, step: Collective) -> int:
        """What a collective holds beside its operand and its result."""
        src, dst = self.size(step.src), self.size(step.dst)
        if step.kind == "reduce_scatter":
            return 2 * src + (dst if self.elsewhere(step.dst) else 0)
        if step.kind == "all_gather":
            return dst
        return src + dst if step.kind == "all_to_all" else 0

    def _room(self, op: Op, step: Compute) -> int:
        """What an op allocates for itself, beside its results."""
        half = [self.graph.tensor[name].dtype in HALF for name in op.inputs]
        match op.target:
            case "superscaler.adamw" | "superscaler.sgd":
                return self._update(op, step)
            case "superscaler.logsumexp":
                return (4 if half[0] else 1) * self.size(step.ins[0])  # computed in float32
            case "superscaler.embedding_backward" if half[0]:
                return 3 * self.size(step.outs[0])
            case "superscaler.cross_entropy_backward" if half[1]:
                return 3 * self.size(step.ins[1])
            case "aten.roll.default":
                return self.size(step.ins[0])
            case "superscaler.attention" | "superscaler.attention_backward":
                return self._attention(op, step)
            case _:
                return 0

    def _update(self, op: Op, step: Compute) -> int:
        """The gradient as clipping, weight decay, Nesterov's momentum or a wider dtype make it."""
        clipped = op.args[CLIPS[op.target]] is not None
        plain = op.target == "superscaler.adamw" or not (op.args[-2] or op.args[-1])
        one_dtype = self.graph.tensor[op.inputs[0]].dtype == self.graph.tensor[op.inputs[1]].dtype
        return 0 if plain and one_dtype and not clipped else self.size(step.ins[1])

    def _attention(self, op: Op, step: Compute) -> int:
        """Key-value heads repeated for the query heads that share them; the scores, where no fused kernel applies."""
        first = 1 if op.phase == "backward" else 0
        query, key = step.ins[first], step.ins[first + 1]
        dims, ways = rule_for(op, self.graph).dims, 2 * (first + 1)
        shared = dims["r"].size * self.size(key) if "r" in dims else 0
        dropout, width = op.args[-4], dims["d"].size
        if not dropout and width == dims["e"].size:
            return ways * shared
        return SCORES[first] * self.size(query) // width * dims["t"].size

    # --- lifetimes ---------------------------------------------------------------------------------------------------

    def _makes(self, number: int, value: int) -> None:
        self.root[value] = value
        self.born.setdefault(value, number)

    def _alias(self, value: int, source: int, *, strided: bool) -> None:
        self.root[value] = self.root.get(source, source)
        if strided:
            self.spread.add(value)

    def _level(self) -> int:
        """The highest level of what is held at a time."""
        ends = _ends(self.body)
        last: dict[int, int] = {}
        for number, step in enumerate(self.body.steps):
            computes = isinstance(step, Compute)
            for value in step.ins if isinstance(step, Compute) else (*reads(step), *writes(step)):
                root = self.root.get(value, value)
                if root in self.born:
                    outside = computes and ends[self.born[root]] != ends[number]
                    last[root] = max(last.get(root, 0), ends[number] if outside else number)
        changes: dict[int, int] = defaultdict(int)
        for value, number in self.born.items():
            changes[number] += self.size(value)
            changes[max(last.get(value, 0), number) + 1] -= self.size(value)
        level = peak = 0
        for number in range(len(self.body.steps)):
            level += changes[number]
            peak = max(peak, level + self.beside[number])
        return peak


def _ends(body: Body) -> list[int]:
    """Per step, the last step of the call that it is part of: ops that follow each other are one."""
    found = list(range(len(body.steps)))
    for number in range(len(found) - 2, -1, -1):
        one, other = body.steps[number], body.steps[number + 1]
        if isinstance(one, Compute) and isinstance(other, Compute) and one.at == other.at:
            found[number] = found[number + 1]
    return found


def _readers(body: Body) -> dict[int, list[Step | Compute]]:
    found: dict[int, list[Step | Compute]] = defaultdict(list)
    for step in body.steps:
        for value in step.ins if isinstance(step, Compute) else reads(step):
            found[value].append(step)
    return found


def _sums(body: Body, elsewhere: Callable[[int], bool]) -> set[int]:
    """Results that go into a sum in the arena and nowhere else: the op, or the line after it, adds them."""
    return {
        value
        for value, found in _readers(body).items()
        if len(found) == 1 and isinstance(found[0], Accumulate) and found[0].src == value and elsewhere(found[0].into)
    }


def _products(body: Body, graph: Graph) -> dict[int, int]:
    """Sums of a matrix product and a bias, which are made in one go: sum -> product."""
    readers = _readers(body)
    made = {
        step.outs[0]: step
        for step in body.steps
        if isinstance(step, Compute) and graph.ops[step.op].target == "aten.mm.default"
    }
    found: dict[int, int] = {}
    for step in body.steps:
        if not isinstance(step, Compute) or graph.ops[step.op].target != "aten.add.Tensor" or len(step.ins) != 2:
            continue
        op = graph.ops[step.op]
        for k, value in enumerate(step.ins):
            if value in made and len(readers[value]) == 1 and len(graph.tensor[op.inputs[1 - k]].shape) == 1:
                found[step.outs[0]] = value
    return found
