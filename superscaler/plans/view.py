"""Looking at the graph that a plan is for: its forward ops, what they are, what reads them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from superscaler.errors import SplitError, UsageError, did_you_mean
from superscaler.ir.argument import shown
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph, Op
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Rule
from superscaler.transforms.blocks import layer_of

VIEWS = ("view",)


@dataclass(frozen=True)
class Stage:
    """Consecutive forward ops."""

    planner: GraphView
    index: int
    ops: tuple[Op, ...]

    def find(self, glob: str = "*", *, op: str | None = None) -> list[Op]:
        """The stage's ops whose module path matches, of a source function (``linear``), family or target.

        Of a function that is several ops (a linear is a transposition, a product and a sum), the heaviest only.
        """
        _text(glob, "a glob of module paths")
        found = [o for o in self.ops if fnmatch.fnmatchcase(o.module, glob)]
        if op is None:
            return [o for o in found if self.planner.family(o) not in VIEWS]
        return self.planner.of_kind(found, op)


class GraphView:
    """A graph with a cluster beside it, and what plan scripts ask about them.

    Forward ops are those that depend on a parameter; what does not is a prologue, which no plan has to place.
    """

    def __init__(self, graph: Graph, cluster: Cluster) -> None:
        self.graph = graph
        self.cluster = cluster
        self.forward = trained_forward(graph)

    @property
    def whole(self) -> Stage:
        """The whole model as one stage."""
        return Stage(self, 0, self.forward)

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters that are trained."""
        return list(self.graph.gradients)

    @property
    def batch(self) -> int:
        """The size of the batch: the first dim of the first input that has any."""
        for name in self.graph.inputs:
            if self.graph.tensor[name].shape:
                return self.graph.tensor[name].shape[0]
        return 1

    def family(self, op: Op) -> str:
        """The family of an op's split rule."""
        return self._rule(op).family

    def _rule(self, op: object) -> Rule:
        return rule_for(self._op(op), self.graph)

    def _op(self, op: object) -> Op:
        if not isinstance(op, Op):
            raise UsageError(f"{shown(op)} is no op", hint="p.find(...) gives a list of ops: take them one by one")
        return op

    def find(self, glob: str = "*", *, op: str | None = None) -> list[Op]:
        """Forward ops of the whole model; see :meth:`Stage.find`."""
        return self.whole.find(glob, op=op)

    def dims(self, op: Op) -> tuple[str, ...]:
        """The dims along which an op may be split."""
        return tuple(n for n, d in self._rule(op).dims.items() if not d.whole)

    def size(self, op: Op, dim: str) -> int:
        """The whole length of one of an op's dims."""
        dims = self._rule(op).dims
        if dim not in dims:
            raise SplitError(f"{op.name} has no dim {dim!r}", op.where, hint=f"its dims are: {', '.join(dims)}")
        return dims[dim].size

    def shape(self, op: Op) -> tuple[int, ...]:
        """The whole shape of an op's first result."""
        return self.graph.tensor[op.outputs[0]].shape

    def depends_on_input(self, op: Op) -> bool:
        """Whether an op reads, directly or not, an input that has the batch."""
        todo, seen = list(op.inputs), set[str]()
        while todo:
            name = todo.pop()
            tensor = self.graph.tensor[name]
            if tensor.kind == "input" and tensor.shape[:1] == (self.batch,):
                return True
            producer = self.graph.producer.get(name)
            if producer is not None and producer.name not in seen:
                seen.add(producer.name)
                todo += producer.inputs
        return False

    def passes(self) -> int:
        """How many times the layers of the model run per batch: more than once if it recycles."""
        times: dict[tuple[str, str, tuple[str, ...]], int] = {}
        for op in self.forward:
            parameters = tuple(n for n in op.inputs if self.graph.tensor[n].kind == "parameter")
            if parameters and any(part.isdigit() for part in op.module.split(".")):
                key = (op.module, op.target, parameters)
                times[key] = times.get(key, 0) + 1
        return max(sorted(times.values())[len(times) // 2 :], default=1) if times else 1

    def after(self, op: Op) -> list[Op]:
        """The forward ops that depend on ``op``."""
        tainted, found = set(op.outputs), list[Op]()
        for each in self.forward:
            if any(name in tainted for name in each.inputs):
                tainted.update(each.outputs)
                found.append(each)
        return found

    def leads_to_loss(self, op: Op) -> bool:
        """Whether only the loss reads what ``op`` makes, views and sums with a bias apart."""
        return all(self.family(each) in ("loss", "view", "pointwise", "reduction") for each in self.after(op))

    def layers(self, ops: Iterable[Op]) -> list[list[Op]]:
        """``ops`` by the layer that they belong to: their module path up to its first number."""
        found: dict[str, list[Op]] = {}
        for op in ops:
            found.setdefault(layer_of(op.module), []).append(op)
        return list(found.values())

    def bytes(self, op: Op) -> int:
        """Bytes of an op's whole results."""
        return sum(self.graph.tensor[name].bytes for name in op.outputs)

    def readers(self, op: Op) -> list[Op]:
        """The forward ops that read what ``op`` makes, themselves or through views."""
        found: list[Op] = []
        for each in (c for name in op.outputs for c in self.graph.consumers[name] if c.phase == "forward"):
            found += self.readers(each) if self.family(each) in VIEWS else [each]
        return found

    def backward_of(self, op: Op) -> list[Op]:
        """The ops of the backward that belong to a forward op, views apart; none where nothing is trained."""
        return list(self._backward.get(self._op(op).name, ()))

    @cached_property
    def _backward(self) -> dict[str, list[Op]]:
        found: dict[str, list[Op]] = {}
        for op in self.graph.ops:
            if op.phase == "backward" and op.link is not None and self.family(op) not in VIEWS:
                found.setdefault(op.link, []).append(op)
        return found

    def of_family(self, family: str) -> list[Op]:
        """The forward ops of a rule family; none is no error."""
        return [op for op in self.forward if self.family(op) == family]

    def of_kind(self, ops: Iterable[Op], kind: str) -> list[Op]:
        """Those of ``ops`` with this source function, family or target; of a function, its heaviest ops."""
        _text(kind, "a source function, family or target")
        found = [o for o in ops if kind in (o.function, self.family(o), o.target)]
        heavy = [o for o in found if self.family(o) in ("matmul", "attention", "gather", "norm", "convolution")]
        if found or kind in {o.function for o in self.forward} | {self.family(o) for o in self.forward}:
            return heavy if heavy and kind not in ("view", "pointwise", "reduction") else found
        known = {o.function for o in self.forward if o.function} | {self.family(o) for o in self.forward}
        raise UsageError(f"no op of the model is a {kind!r}", hint=did_you_mean(kind, known))

    def inner(self, modules: str = "*") -> list[Op]:
        """Forward ops inside the repeated layers whose module path matches: not embeddings, head or loss."""

        def numbered(op: Op) -> bool:
            return any(part.isdigit() for part in op.module.split("."))

        return [op for op in self.forward if numbered(op) and fnmatch.fnmatchcase(op.module, modules)]


def _text(given: object, what: str) -> None:
    if not isinstance(given, str):
        raise UsageError(f"{shown(given)} is not {what}", hint="text")


def trained_forward(graph: Graph) -> tuple[Op, ...]:
    """The forward ops that depend on a parameter, or sleep in the place of one that does, in order."""
    tainted = {t.name for t in graph.tensors if t.kind == "parameter"}
    found: list[Op] = []
    for op in graph.ops:
        if op.target.startswith("superscaler.sleep") or any(name in tainted for name in op.inputs):
            tainted.update(op.outputs)
            if op.phase == "forward":
                found.append(op)
    return tuple(found)
