"""The Graph: what is computed. Ops over logical tensors, nothing about devices or time.

Operands inside ``Op.args`` are written ``"$k"`` (the k-th input). Values that depend on how the op is split are
written as placeholders, so that an op is the same whatever its part:

    "#shape"      local shape of the first output          "#local:d"   local length of the op's dim d
    "#start:d"    first index of the op's dim d in the part ("d" is then split contiguously)
    "#size:d"     the whole length of the op's dim d        "#seed"      (seed, step) of the run
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal

import msgspec

from superscaler.errors import CheckError
from superscaler.ir.names import name_text, names_text
from superscaler.ir.text import dump

Kind = Literal["parameter", "buffer", "input", "activation", "optimizer", "constant", "cache"]
Phase = Literal["forward", "backward", "optimizer"]

GIVEN, DRIVEN = "input:", "optimizer:"
"""What the names of a model's inputs, and of what the optimizer adds, begin with where another tensor has the name."""
OF_STEP = ("lr", "step")
"""The inputs that the job itself gives: the learning rate, and the number of the step."""

ITEMSIZE = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8,
}  # fmt: skip


class Tensor(msgspec.Struct, frozen=True):
    """A logical tensor: its whole shape, whatever is split."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "activation"

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.numel * ITEMSIZE[self.dtype]


class Op(msgspec.Struct, frozen=True, omit_defaults=True):
    """One op: ``target(*args)`` over tensors, with where it came from.

    ``module``: the module path (``layers.3.mlp``). ``function``: the source function's or module's kind (``linear``,
    ``layer_norm``). ``source``: ``file:line``. ``link``: the forward op whose gradient this op helps to compute.
    """

    name: str
    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    args: tuple[Any, ...] = ()
    phase: Phase = "forward"
    module: str = ""
    function: str = ""
    source: str = ""
    link: str | None = None

    @property
    def where(self) -> str:
        """Where it comes from, in words: the model's line if it is of one."""
        made = f"{self.function or self.target} in {self.module or 'the model'}"
        return f"at {self.source} ({made})" if self.source else f"in the {self.phase} ({made})"


class Graph(msgspec.Struct, frozen=True, dict=True):
    """Ops in topological order over tensors.

    ``inputs``: the user's inputs in order. ``outputs``: name -> tensor (``loss``; other results of the entry).
    ``gradients``: parameter -> its whole gradient, before clipping. ``updates``: state tensor -> the tensor that is its
    value after the entry.
    """

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: dict[str, str]
    gradients: dict[str, str] = {}
    updates: dict[str, str] = {}

    @cached_property
    def tensor(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def op(self) -> dict[str, Op]:
        """Ops by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def rules(self) -> dict[str, tuple[Op, Any]]:
        """What :func:`superscaler.ir.rules.rule_for` has found: name of an op -> the op, its rule."""
        return {}

    @cached_property
    def producer(self) -> dict[str, Op]:
        """Tensor name -> the op that writes it (inputs and state have none)."""
        return {out: op for op in self.ops for out in op.outputs}

    @cached_property
    def consumers(self) -> dict[str, tuple[Op, ...]]:
        """Tensor name -> the ops that read it."""
        found: dict[str, list[Op]] = {t.name: [] for t in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    def __str__(self) -> str:
        return _text(self)

    def state(self) -> Iterator[Tensor]:
        """Tensors that live across steps."""
        return (t for t in self.tensors if t.kind in ("parameter", "buffer", "optimizer", "cache"))

    def verify(self) -> None:
        """Each tensor is written once, before it is read; names are known. Raises :class:`CheckError`."""
        known = {t.name for t in self.tensors}
        if len(known) != len(self.tensors):
            raise CheckError("graph: two tensors have one name")
        written = {t.name for t in self.tensors if t.kind != "activation"}
        for op in self.ops:
            for name in op.inputs:
                if name not in written:
                    raise CheckError(f"graph: op {op.name} reads {name!r} before it is written", f"op: {op.target}")
            for name in op.outputs:
                if name not in known or name in written:
                    raise CheckError(f"graph: op {op.name} writes {name!r}, which is unknown or written already")
                written.add(name)
        for role, name in (*self.outputs.items(), *self.gradients.items(), *self.updates.items()):
            if name not in written:
                raise CheckError(f"graph: {role} is {name!r}, which nothing writes")


def ancestors(graph: Graph, tensors: Iterable[str]) -> set[str]:
    """Names of the ops that the given tensors depend on."""
    found: set[str] = set()
    todo = list(tensors)
    while todo:
        op = graph.producer.get(todo.pop())
        if op is not None and op.name not in found:
            found.add(op.name)
            todo.extend(op.inputs)
    return found


def pruned(graph: Graph, outputs: dict[str, str], updates: dict[str, str], gradients: dict[str, str]) -> Graph:
    """The graph that computes only the given results."""
    roots = (*outputs.values(), *updates.values(), *gradients.values())
    keep = ancestors(graph, roots)
    ops = tuple(op for op in graph.ops if op.name in keep)
    used = {n for op in ops for n in (*op.inputs, *op.outputs)} | set(roots) | set(graph.inputs)
    used |= {t.name for t in graph.state()}
    tensors = tuple(t for t in graph.tensors if t.name in used)
    return Graph(tensors, ops, graph.inputs, outputs, gradients, updates)


# --- as text ----------------------------------------------------------------------------------------------------------


def _text(graph: Graph) -> str:
    """One line per tensor that is there beforehand, per op, and per result."""
    written = {name for op in graph.ops for name in op.outputs}
    lines = ["graph"]
    lines += [f"  {t.kind} {_typed(t)}" for t in graph.tensors if t.name not in written]
    lines += [f"  {_op_text(graph, op)}" for op in graph.ops]
    lines += [f"  inputs {names_text(graph.inputs)}"] if graph.inputs else []
    for what, table in (("output", graph.outputs), ("gradient", graph.gradients), ("update", graph.updates)):
        lines += [f"  {what} {name_text(name)} = {name_text(tensor)}" for name, tensor in table.items()]
    return "\n".join(lines)


def _typed(tensor: Tensor) -> str:
    return f"{name_text(tensor.name)}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _op_text(graph: Graph, op: Op) -> str:
    outs = ", ".join(_typed(graph.tensor[name]) for name in op.outputs)
    args = dump(list(op.args))[1:-1]
    more = msgspec.to_builtins(op)
    for shown in ("target", "inputs", "outputs", "args"):
        more.pop(shown, None)
    return f"{outs} = {op.target}({args}) of {names_text(op.inputs)}  # {msgspec.json.encode(more).decode()}"
