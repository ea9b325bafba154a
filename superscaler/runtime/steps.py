"""Steps as lines of code: what each step of a Program does on one worker."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.program import (
    Accumulate,
    At,
    Block,
    Call,
    Collect,
    Collective,
    Commit,
    Definition,
    Mask,
    Offload,
    Recv,
    Send,
    Slice,
    Step,
)  # fmt: skip
from superscaler.runtime import transfer
from superscaler.runtime.binding import Binding
from superscaler.runtime.blocks import Code, Emitter
from superscaler.runtime.body import Body, Outputs, build
from superscaler.runtime.comm import Comm, Key
from superscaler.runtime.packing import Packing, packing
from superscaler.runtime.resolve import Resolved, Resolver
from superscaler.runtime.storage import Place, at_of, reads, writes
from superscaler.runtime.updates import InPlace, in_place

Prepare = Callable[[Body], Callable[..., Any]]
First = frozenset[tuple[int, int, int]]  # (block, micro-batch, step) of the steps that write first what others add to


@dataclass
class Context:
    """What all blocks of one worker's Program share. ``prepare``: turns a body into what is called."""

    binding: Binding
    comm: Comm
    device: torch.device
    places: list[Place]
    first: First
    prepare: Prepare
    resolver: Resolver
    bodies: dict[Any, tuple[Body, Callable[..., Any]]] = field(default_factory=dict)

    def body(self, call: Call, resolved: Resolved, uses: Outputs, storage: Mapping[int, int]) -> Callable[..., Any]:
        """What runs a call at these shapes, made once for all calls that are equal in that.

        ``storage``: outputs, by position, that go into the storage of another value.
        """
        into = tuple((p, self.binding.dtype(v)) for p, v in sorted(storage.items()))
        key = (call.definition, resolved.lines, resolved.shapes, uses, into)
        found = self.bodies.get(key)
        if found is None:
            definition = self.binding.entry.definitions[call.definition]
            made = [self.binding.dtype(v) for v in call.outs]
            dtypes = {p: (d, self.binding.dtype(storage.get(p, call.outs[p]))) for p, d in enumerate(made)}
            body = build(f"definition_{call.definition}", resolved, definition.outs, uses, dtypes)
            found = self.bodies[key] = (body, self.prepare(body))
        return found[1]


def emit(context: Context, number: int) -> Code:
    """The code of one block."""
    return _Block(context, number).code()


class _Block:
    def __init__(self, context: Context, number: int) -> None:
        self.context = context
        self.binding = context.binding
        self.number = number
        self.block: Block = self.binding.program.blocks[number]
        self.alias: dict[int, int] = {}  # value -> the state value that it has become
        self.begun: set[str] = set()  # locals that have been written
        self.absorbed: set[int] = set()  # steps that a call carries out itself
        kind = re.sub(r"\W", "_", self.block.kind)
        self.out = Emitter(f"{kind}_{number}", self.block, self.var)

    def code(self) -> Code:
        for i, step in enumerate(self.block.steps):
            at = at_of(step)
            self.out.settle({self.var(v, at) for v in reads(step)})
            self._emit(i, step)
        return self.out.code()

    def _emit(self, i: int, step: Step) -> None:
        match step:
            case Call():
                self._call(i, step)
            case Slice():
                self._slice(step)
            case Mask():
                self._mask(step)
            case Accumulate():
                self._accumulate(i, step)
            case Collect():
                self._collect(i, step)
            case Collective():
                self._collective(step)
            case Send():
                key = self._key(step)
                make = self._maker(transfer.send, step, key)
                self.out.transfer("_", f"{self.out.entry(make)}({self.var(step.src, step.at)})")
            case Recv():
                self._recv(step)
            case Commit():
                if step.src not in self.alias:
                    self.out.line(f"{self.var(step.state, ())}.copy_({self.var(step.src, ())})")
            case Offload():
                self._offload(step)

    # --- where values are -------------------------------------------------------------------------------------------

    def place(self, value: int) -> Place:
        return self.context.places[value]

    def var(self, value: int, at: At) -> str:
        """A local name, or a register: ``r[3]``, ``r[12 + j]``."""
        value = self.alias.get(value, value)
        over = self.binding.program.values[value].over
        fixed = dict(at)
        if self.place(value) == "local":
            return f"v{value}" + "".join(f"_{fixed[a]}" for a in over if a in fixed)
        number, stride, by = 0, 1, 0
        for axis in reversed(over):
            if axis in fixed:
                number += fixed[axis] * stride
            elif axis in self.block.over:
                by = stride
            stride *= self.binding.space.axis(axis).ways
        base = self.binding.base[value] + number
        return f"r[{base}]" if not by else f"r[{base} + j]" if by == 1 else f"r[{base} + {by} * j]"

    def times(self, at: At, j: int) -> dict[str, int]:
        return self.binding.times(self.block, j, at)

    def storage(self, value: int, at: At) -> str:
        """The storage that a step must write to, or None: it makes its own."""
        return self.var(value, at) if self.place(value) == "arena" else "None"

    def target(self, value: int, at: At) -> str:
        """Where the result of a step goes; one in the arena is there already."""
        return "_" if self.place(value) == "arena" else self.var(value, at)

    def _key(self, step: Send | Recv | Collective) -> Callable[[int], Key]:
        return lambda j: (step.comm, j)

    def _maker(self, make: Callable[..., Any], step: Any, key: Callable[[int], Key]) -> Callable[[int], Any]:
        return lambda j: make(self.binding, self.context.comm, step, self.times(step.at, j), key(j))

    # --- computation ------------------------------------------------------------------------------------------------

    def _call(self, i: int, call: Call) -> None:
        definition = self.binding.entry.definitions[call.definition]
        updates = in_place(self.binding.program, self.block, i, definition)
        sums = self._sums(i, call)
        uses = self._uses(call, updates, sums)
        resolved: dict[int, Resolved] = {}

        def resolve(j: int) -> Resolved:
            if j not in resolved:
                coords = self.binding.coords(call.mesh, self.times(call.at, j))
                resolved[j] = self.context.resolver.call(definition, call, coords)
            return resolved[j]

        def function_of(j: int) -> Callable[..., Any]:
            begins = {p: (self.number, j, k) in self.context.first for p, k in sums.items()}
            stored = (*uses.stored, *(p for p, first in begins.items() if first))
            added = tuple(p for p, first in begins.items() if not first)
            into = {p: self._sum(k).into for p, k in sums.items()}
            return self.context.body(call, resolve(j), replace(uses, stored=stored, added=added), into)

        function = self.out.entry(function_of)
        args = [self.var(v, call.at) for v in call.ins]
        if _parametrised(definition):
            args.append("*" + self.out.entry(lambda j: resolve(j).bindings))
        if draws(definition):
            args.append("seed")
        places = {p: self.var(call.outs[p], call.at) for p in uses.stored}
        places |= {p: self.var(self._sum(k).into, call.at) for p, k in sums.items()}
        args += [places[p] for p in sorted(places)]
        self.alias.update(updates.state)
        self.absorbed.update(sums.values())
        kept = [p for p in range(len(call.outs)) if p not in places]
        targets = ["_" if call.outs[p] in updates.state else self.var(call.outs[p], call.at) for p in kept]
        assignment = f"{', '.join(targets)} = " if any(t != "_" for t in targets) else ""
        self.out.line(f"{assignment}{function}({', '.join(args)})")

    def _sum(self, step: int) -> Accumulate:
        found = self.block.steps[step]
        assert isinstance(found, Accumulate)
        return found

    def _sums(self, i: int, call: Call) -> dict[int, int]:
        """Outputs, by position, that the body itself adds to a sum in the arena: the number of the step that says so.

        Nobody else reads such an output, and nothing between touches the sum.
        """
        found: dict[int, int] = {}
        for p, value in enumerate(call.outs):
            readers = [k for k, s in enumerate(self.block.steps) if value in reads(s) and at_of(s) == call.at]
            if self.place(value) != "local" or len(readers) != 1 or readers[0] < i:
                continue
            step = self.block.steps[readers[0]]
            if not isinstance(step, Accumulate) or self.place(step.into) != "arena":
                continue
            between = self.block.steps[i : readers[0]]
            if not any(step.into in (*reads(s), *writes(s)) for s in between):
                found[p] = readers[0]
        taken = [self._sum(k).into for k in found.values()]
        return {p: k for p, k in found.items() if taken.count(self._sum(k).into) == 1}

    def _uses(self, call: Call, updates: InPlace, sums: Mapping[int, int]) -> Outputs:
        stored: list[int] = []
        owned: list[int] = []
        for p, value in enumerate(call.outs):
            if value in updates.state or p in sums:
                continue
            if self.place(value) == "arena":
                stored.append(p)
            elif self.place(value) == "held" or self._stolen(value, call.at):
                owned.append(p)
        return Outputs(tuple(stored), (), tuple(owned), updates.rows)

    def _stolen(self, value: int, at: At) -> bool:
        """Whether a local result may become the start of a sum: its only reader is the Accumulate that takes it."""
        readers = [s for s in self.block.steps if value in reads(s) and at_of(s) == at]
        if self.place(value) != "local" or len(readers) != 1 or not isinstance(readers[0], Accumulate):
            return False
        into = readers[0].into
        return self.place(into) != "arena" and self.binding.dtype(into) == self.binding.dtype(value)

    def _accumulate(self, i: int, step: Accumulate) -> None:
        if i in self.absorbed:
            return
        into, src = self.var(step.into, step.at), self.var(step.src, step.at)
        made = any(isinstance(s, Call) and step.src in s.outs for s in self.block.steps)
        stolen = made and self._stolen(step.src, step.at)
        if self.place(step.into) == "local":
            add = _add if into in self.begun else self._begin(step, stolen)
            self.out.line(f"{into} = {self.out.entry(lambda j: add)}({into if into in self.begun else 'None'}, {src})")
            self.begun.add(into)
            return

        def make(j: int) -> Callable[[Tensor, Tensor], Tensor]:
            if (self.number, j, i) not in self.context.first:
                return _add
            return self._begin(step, stolen)

        self.out.line(f"{self.target(step.into, step.at)} = {self.out.entry(make)}({into}, {src})")

    def _begin(self, step: Accumulate, stolen: bool) -> Callable[[Any, Tensor], Tensor]:
        if self.place(step.into) == "arena":
            return _store
        dtype = self.binding.dtype(step.into)
        return _take if stolen else lambda _, src: src.to(dtype, memory_format=torch.contiguous_format, copy=True)

    def _mask(self, step: Mask) -> None:
        coords = self.binding.space.mesh(self.binding.program.values[step.dst].layout.mesh).coords(self.binding.worker)
        kept = all(coords[axis] == 0 for axis in step.axes)
        src, out = self.var(step.src, ()), self.storage(step.dst, ())
        if self.place(step.dst) == "arena":
            self.out.line(f"{out}.copy_({src})" if kept else f"{out}.zero_()")
        elif self.place(step.dst) == "local" and kept:
            self.out.line(f"{self.var(step.dst, ())} = {src}")
        else:
            made = f"{src}.clone()" if kept else f"{src}.new_zeros({src}.shape)"
            self.out.line(f"{self.var(step.dst, ())} = {made}")

    # --- movement on this worker ------------------------------------------------------------------------------------

    def _slice(self, step: Slice) -> None:
        place = self.place(step.dst)

        def make(j: int) -> Callable[..., Any]:
            times = self.times(step.at, j)
            pack = packing(self.binding.local(step.src, times), self.binding.local(step.dst, times))
            return pack.take if place == "local" else pack.copy if place == "arena" else _owning(pack)

        part, src = self.out.entry(make), self.var(step.src, step.at)
        if place == "arena":
            self.out.line(f"{part}({src}, {self.var(step.dst, step.at)})")
        else:
            self.out.line(f"{self.var(step.dst, step.at)} = {part}({src})")

    def _collect(self, i: int, step: Collect) -> None:
        def make(j: int) -> Callable[[Any, Tensor], Tensor]:
            times = self.times(step.at, j)
            whole = self.binding.local(step.into, times)
            pack = packing(whole, self.binding.local(step.src, times))
            starts = (self.number, j, i) in self.context.first and self.place(step.into) != "arena"
            return _collecting(pack, whole.shape if starts else None)

        into = self.var(step.into, step.at)
        old = "None" if self.place(step.into) == "local" and into not in self.begun else into
        self.begun.add(into)
        self.out.line(f"{into} = {self.out.entry(make)}({old}, {self.var(step.src, step.at)})")

    def _offload(self, step: Offload) -> None:
        device = self.context.device if step.to == "device" else torch.device("cpu")
        src = self.var(step.src, ())
        if self.place(step.dst) == "arena":
            self.out.line(f"{self.var(step.dst, ())}.copy_({src}, non_blocking=True)")
        else:
            move = self.out.entry(lambda j: lambda x: x.to(device, copy=True))  # type: ignore[no-any-return]
            self.out.line(f"{self.var(step.dst, ())} = {move}({src})")

    # --- communication ----------------------------------------------------------------------------------------------

    def _recv(self, step: Recv) -> None:
        make = self._maker(transfer.recv, step, self._key(step))
        local = self.var(step.local, step.at) if step.local >= 0 else "None"
        device = self.out.entry(lambda j: self.context.device)
        out = self.storage(step.dst, step.at)
        self.out.transfer(self.var(step.dst, step.at), f"{self.out.entry(make)}({local}, {out}, {device})")

    def _collective(self, step: Collective) -> None:
        make = self._maker(transfer.collective, step, self._key(step))
        out = self.storage(step.dst, step.at)
        expression = f"{self.out.entry(make)}({self.var(step.src, step.at)}, {out})"
        self.out.transfer(self.var(step.dst, step.at), expression, rounds=transfer.rounds(self.binding, step))


def _add(into: Tensor, src: Tensor) -> Tensor:
    return into.add_(src)


def _store(into: Tensor, src: Tensor) -> Tensor:
    return into.copy_(src)


def _take(_: Any, src: Tensor) -> Tensor:
    return src


def _owning(pack: Packing) -> Callable[[Tensor], Tensor]:
    def take(buffer: Tensor) -> Tensor:
        part = pack.take(buffer)
        return part.clone(memory_format=torch.contiguous_format) if part._is_view() or part is buffer else part

    return take


def _collecting(pack: Packing, shape: tuple[int, ...] | None) -> Callable[[Any, Tensor], Tensor]:
    def put(into: Any, src: Tensor) -> Tensor:
        whole = src.new_empty(shape) if shape is not None else into
        pack.put(whole, src)
        return whole

    return put


def _placeholders(args: Any) -> set[str]:
    if isinstance(args, str):
        return {args.partition(":")[0]}
    if isinstance(args, dict):
        return _placeholders(tuple(args["kw"].values()))
    return set[str]().union(*map(_placeholders, args)) if isinstance(args, list | tuple) else set()


def _parametrised(definition: Definition) -> bool:
    return any(_placeholders(row.args) & {"#start", "#region", "#key"} for row in definition.rows)


def draws(definition: Definition) -> bool:
    """Whether its bodies take the (seed, step) of a run."""
    return any("#seed" in _placeholders(row.args) for row in definition.rows)
