"""Bodies: a definition at its local shapes as a ``torch.fx.GraphModule``.

The module takes the definition's inputs, then its parameters (see ``resolve``), then ``seed`` if an op draws random
numbers, then the storage of the outputs that live in the arena. It returns the outputs that do not.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import fx

from superscaler.errors import RunError
from superscaler.ir.rules import specs
from superscaler.runtime import ops
from superscaler.runtime.ops.norm import layer_norm_backward
from superscaler.runtime.peephole import ADDMM, LAYER_NORM_BACKWARD, fused
from superscaler.runtime.resolve import Line, Resolved, Shape

# Ops whose result may share the storage of an operand.
VIEWS = frozenset(
    {
        "superscaler.reshape", "superscaler.expand", "superscaler.block", "superscaler.cast", "aten.permute.default",
        "aten.slice.Tensor", "aten.select.int",
    }
)  # fmt: skip


# What fusing makes of ops that rules name.
FUSED: dict[str, Callable[..., Any]] = {
    ADDMM: torch.addmm,
    LAYER_NORM_BACKWARD: layer_norm_backward,
}


Dtypes = Mapping[int, tuple[torch.dtype, torch.dtype]]  # position -> dtype of an output, and of its storage


@dataclass(frozen=True)
class Outputs:
    """What becomes of a definition's outputs, by position: ``stored`` in given storage, ``added`` to what is in it,
    ``owned`` (they outlive the task, so they need storage of their own). ``updated``: rows whose outputs overwrite
    their operands, as (first output's local number, outputs whose operand is copied before)."""

    stored: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    owned: tuple[int, ...] = ()
    updated: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def given(self) -> tuple[int, ...]:
        """The outputs whose storage is given, in the order in which the body takes it."""
        return tuple(sorted((*self.stored, *self.added)))


@dataclass(frozen=True)
class Body:
    """``module(*inputs, *parameters, [seed], *storage)``. ``copied``: bytes written to storage by a copy, because the
    op has no form that writes there itself; ``copies``: how many such outputs."""

    module: fx.GraphModule
    lines: tuple[Line, ...]
    copies: int
    copied: int


def build(name: str, resolved: Resolved, outs: tuple[int, ...], uses: Outputs, dtypes: Dtypes) -> Body:
    """The body of a resolved call. ``outs``: the definition's outputs; ``dtypes``: of each and of its storage."""
    return _Builder(name, resolved, outs, uses, dtypes).build()


class _Builder:
    def __init__(self, name: str, resolved: Resolved, outs: tuple[int, ...], uses: Outputs, dtypes: Dtypes) -> None:
        self.name = name
        self.resolved = resolved
        self.outs = outs
        self.uses = uses
        self.added = frozenset(outs[p] for p in uses.added)
        self.read = frozenset(number for line in resolved.lines for number in line.ins)
        self.itemsize = {outs[p]: kept.itemsize for p, (_, kept) in dtypes.items()}
        self.same = {outs[p]: made == kept for p, (made, kept) in dtypes.items()}
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.parameters: list[fx.Node] = []
        self.seed: fx.Node | None = None
        self.storage: dict[int, fx.Node] = {}
        self.passed: set[int] = set()  # results that are their operands, handed on
        self.copies = self.copied = 0

    def build(self) -> Body:
        lines = self.resolved.lines
        for i in range(len(self.resolved.shapes)):
            self.nodes[i] = self.graph.placeholder(f"x{i}")
        self.parameters = [self.graph.placeholder(f"p{i}") for i in range(len(self.resolved.bindings))]
        self.seed = self.graph.placeholder("seed") if any("@seed" in leaves(line.args) for line in lines) else None
        for position in self.uses.given:
            self.storage[self.outs[position]] = self.graph.placeholder(f"out{position}")
        short = fused(lines, self._shapes(), keep=frozenset(self.outs))
        self._hand_on(short)
        for line in short:
            self._line(line)
        self._return()
        module = fx.GraphModule(torch.nn.Module(), self.graph, class_name=self.name)
        return Body(module, tuple(short), self.copies, self.copied)

    def _shapes(self) -> dict[int, Shape]:
        """Local shapes by local number."""
        shapes = dict(enumerate(self.resolved.shapes))
        for line in self.resolved.lines:
            shapes.update(zip(line.outs, line.shapes, strict=True))
        return shapes

    def _hand_on(self, lines: list[Line]) -> None:
        """Where an op hands on what nobody else reads, its operand is made where its result goes, and stays there."""
        reads = Counter(number for line in lines for number in line.ins)
        made = {line.outs[0] for line in lines if len(line.outs) == 1 and line.target not in VIEWS}
        for line in reversed(lines):
            if line.target not in ops.HANDING_ON:
                continue
            operand, result = line.ins[0], line.outs[0]
            if reads[operand] != 1 or operand not in made or operand in self.outs:
                continue
            self.passed.add(result)
            if result in self.storage and self.same[result] and result not in self.added:
                self.storage[operand], self.same[operand] = self.storage.pop(result), True
                self.itemsize[operand] = self.itemsize[result]

    def _line(self, line: Line) -> None:
        copied = dict(self.uses.updated).get(line.outs[0])
        args, kwargs = self._args(line)
        if copied is not None:
            self._update(line, args, copied)
            return
        if line.outs[0] in self.passed:
            kwargs["out"] = args[0]
        elif len(line.outs) == 1 and self._direct(line, args, kwargs):
            return
        result = self.graph.call_function(function_of(line.target), args, kwargs)
        result.meta["line"] = line
        if len(line.outs) == 1:
            self._output(line, 0, result)
            return
        for k in range(len(line.outs)):
            self._output(line, k, self.graph.call_function(operator.getitem, (result, k)))

    def _update(self, line: Line, args: tuple[Any, ...], copied: tuple[int, ...]) -> None:
        """An op that overwrites operands: state, or copies of what must stay."""
        function, overwrites = ops.INPLACE[line.target]
        given = list(args)
        for k, number in enumerate(line.outs):
            place = overwrites[k]
            if k in copied:
                storage = self.storage.get(number)
                fresh = storage is not None and self.same[number] and number not in self.added
                made = ("copy_", (storage, given[place])) if fresh else ("clone", (given[place],))
                given[place] = self.graph.call_method(*made)
            self.nodes[number] = given[place]
        self.graph.call_function(function, tuple(given)).meta["line"] = line
        for k in copied:
            storage = self.storage.get(line.outs[k])
            if storage is not None and self.nodes[line.outs[k]].target != "copy_":
                self._output(line, k, self.nodes[line.outs[k]])

    def _direct(self, line: Line, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the op itself writes, or adds, its one result to the given storage."""
        number = line.outs[0]
        storage = self.storage.get(number)
        if storage is None or not self.same[number]:
            return False
        if number in self.added:
            if line.target == "aten.mm.default" and not kwargs and number not in self.read:
                self.nodes[number] = self.graph.call_method("addmm_", (storage, *args))
                return True
            return False
        form = out_form(line.target)
        if form is not None:
            self.nodes[number] = self.graph.call_function(form, args, {**kwargs, "out": storage})
        return form is not None

    def _args(self, line: Line) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(self._arg(a, line) for a in line.args), {k: self._arg(v, line) for k, v in line.kwargs}

    def _arg(self, arg: Any, line: Line) -> Any:
        if isinstance(arg, tuple):
            return tuple(self._arg(a, line) for a in arg)  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(arg, str) or not arg.startswith(("$", "@")):
            return arg
        if arg == "@seed":
            return self.seed
        if arg[0] == "@":
            return self.parameters[int(arg[1:])]
        node = self.nodes[line.ins[int(arg[1:])]]
        return self.graph.call_method("contiguous", (node,)) if _is_strange(line.target) else node

    def _output(self, line: Line, k: int, node: fx.Node) -> None:
        """Bring a result to where it goes; what reads it in this body reads the result itself, never a sum."""
        number = line.outs[k]
        storage = self.storage.get(number)
        if number in self.added:
            self.graph.call_method("add_", (storage, node))
        elif storage is not None:
            kept = self.graph.call_method("copy_", (storage, node))
            node = kept if self.same[number] else node
            self.copies += 1
            self.copied += prod(line.shapes[k]) * self.itemsize[number]
        elif any(self.outs[p] == number for p in self.uses.owned):
            how = "clone" if line.target in VIEWS else "contiguous"
            node = self.graph.call_method(how, (node,), {"memory_format": torch.contiguous_format})
        self.nodes[number] = node

    def _return(self) -> None:
        kept = tuple(p for p in range(len(self.outs)) if p not in self.uses.given)
        for p in self.uses.given:
            if self.outs[p] < len(self.resolved.shapes):
                raise RunError(f"{self.name}: output {p} is an input of the definition")
        nodes = [self.nodes[self.outs[p]] for p in kept]
        self.graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes) if nodes else None)


def _is_strange(target: str) -> bool:
    """Whether the op has no rule of the table: it was tried on contiguous operands, and may misread others."""
    return target not in FUSED and specs().get(target, ("custom",))[0] == "custom"


def function_of(target: str) -> Callable[..., Any]:
    """The function of a line, fused ones included."""
    return FUSED[target] if target in FUSED else ops.function(target)


@lru_cache(maxsize=1024)
def out_form(target: str) -> Callable[..., Any] | None:
    """The form of an ATen op that writes its one result into ``out=``, if it has one."""
    if target == ADDMM:
        return torch.addmm
    if target in ops.OUT_FORMS:
        return ops.OUT_FORMS[target]
    namespace, _, rest = target.partition(".")
    if namespace != "aten" or target in VIEWS:
        return None
    packet, _, overload = rest.rpartition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload)
    wanted = [str(a.type) for a in op._schema.arguments]
    for name in getattr(torch.ops.aten, packet).overloads():
        form = getattr(getattr(torch.ops.aten, packet), name)
        arguments = form._schema.arguments
        if len(form._schema.returns) != 1 or not arguments or not arguments[-1].is_out:
            continue
        if [str(a.type) for a in arguments[:-1]] == wanted and arguments[-1].name == "out":
            return form
    return None


def leaves(args: tuple[Any, ...]) -> list[Any]:
    """The arguments inside nested sequences."""
    found: list[Any] = []
    for arg in args:
        if isinstance(arg, tuple):
            found += leaves(arg)  # pyright: ignore[reportUnknownArgumentType]
        else:
            found.append(arg)
    return found
