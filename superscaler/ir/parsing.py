"""Parsing: Graphs and Programs from the text that they print as."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from superscaler.errors import UsageError
from superscaler.ir import text
from superscaler.ir.graph import Graph, Op, Tensor
from superscaler.ir.layout import Layout, Partial, Shard, State
from superscaler.ir.names import NAME
from superscaler.ir.program import (
    Accumulate,
    At,
    Block,
    Buffer,
    Call,
    Collect,
    Collective,
    Commit,
    Item,
    Mask,
    Offload,
    Program,
    Recv,
    Send,
    Slice,
    Step,
    Value,
)

_TYPED = re.compile(rf"({NAME}): (\w+)\[([\d, ]*)\]")
_OUT = rf"{NAME}: \w+\[[\d, ]*\]"
_OP = re.compile(rf"({_OUT}(?:, {_OUT})*) = ([\w.]+)\((.*)\) of ((?:{NAME}(?:, {NAME})*)?)  # (\{{.*\}})")
_RESULT = re.compile(rf"(output|gradient|update) ({NAME}) = ({NAME})")


def _name(given: str) -> str:
    return msgspec.json.decode(given, type=str) if given.startswith('"') else given


def _names(given: str) -> tuple[str, ...]:
    return tuple(_name(n) for n in re.findall(NAME, given))


def _numbers(given: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", given or "")))


def _wrong(number: int, line: str, what: str) -> UsageError:
    return UsageError(
        f"line {number}: this is no line of a {what}", line.strip()[:200], hint=f"what str() of a {what} gives"
    )


# --- graphs -----------------------------------------------------------------------------------------------------------


def parse_graph(given: str) -> Graph:
    """The Graph that a text shows; tensors stand in the order of their lines. Raises :class:`UsageError`."""
    tensors: list[Tensor] = []
    ops: list[Op] = []
    inputs: tuple[str, ...] = ()
    results: dict[str, dict[str, str]] = {"output": {}, "gradient": {}, "update": {}}
    for number, line in enumerate(given.splitlines()[1:], 2):
        entry = line.strip()
        if found := _RESULT.fullmatch(entry):
            results[found[1]][_name(found[2])] = _name(found[3])
        elif found := _OP.fullmatch(entry):
            outs = [_tensor(t, "activation") for t in _TYPED.findall(found[1])]
            tensors += outs
            ops.append(_op(found, tuple(t.name for t in outs)))
        elif entry.startswith("inputs "):
            inputs = _names(entry[len("inputs ") :])
        elif found := re.fullmatch(rf"(\w+) ({_TYPED.pattern})", entry):
            tensors.append(_tensor((found[3], found[4], found[5]), found[1]))
        elif entry:
            raise _wrong(number, line, "graph")
    return Graph(tuple(tensors), tuple(ops), inputs, results["output"], results["gradient"], results["update"])


def _tensor(found: tuple[str, str, str], kind: str) -> Tensor:
    shape = tuple(int(n) for n in found[2].split(",") if n.strip())
    return msgspec.convert({"name": _name(found[0]), "shape": shape, "dtype": found[1], "kind": kind}, Tensor)


def _op(found: re.Match[str], outs: tuple[str, ...]) -> Op:
    more: dict[str, Any] = msgspec.json.decode(found[5])
    args = tuple(text.parse(f"[{found[3]}]", list[Any]))
    fields = {"target": found[2], "inputs": _names(found[4]), "outputs": outs, **more}
    return msgspec.structs.replace(msgspec.convert(fields, Op), args=args)


# --- programs ---------------------------------------------------------------------------------------------------------

_STATE = re.compile(r"(\w+)=(?:S(\d+)\((\d+)(?:/(\d+))?\)|P\((\w+)\))")
_VALUE = re.compile(rf"%\d+ = ({NAME}) as (\w+)\{{(.*)\}}(?: over ([\w, ]+?))?(?: terms ([\d ]+))?")
_BLOCK = re.compile(rf"block \d+: ({NAME}) is (\w+) on (\w+)(?: over ([\w, ]+))? lane (\w+) stage (-?\d+)")
_NAMED = re.compile(rf"(input|state|output|gradient) ({NAME}) = %(\d+)")
_RUN = re.compile(r"run (\d+)\.(\d+) at (\d+)\.\.(\d+)(?: frees (\d+))?")
_AT = r"(?: at ([\w =,]+))?"
_STEPS: dict[str, re.Pattern[str]] = {
    "call": re.compile(rf"call (\d+) op (\d+) \((.*?)\) -> \((.*?)\) on (\w+){_AT}"),
    "move": re.compile(rf"(slice|accumulate|collect|commit) %(\d+) -> %(\d+)(?: term (\d+))?{_AT}"),
    "collective": re.compile(rf"(all_\w+|reduce_\w+) %(\d+) -> %(\d+) along ([\w, ]*) grouping (\d+) comm (\d+){_AT}"),
    "send": re.compile(rf"send %(\d+) route (\d+) comm (\d+){_AT}"),
    "recv": re.compile(rf"recv %(\d+) route (\d+) comm (\d+)(?: local %(\d+))?{_AT}"),
    "mask": re.compile(rf"mask %(\d+) -> %(\d+) along ([\w, ]+?){_AT}"),
    "offload": re.compile(r"offload %(\d+) -> %(\d+) to (host|device)"),
}  # fmt: skip


def _words(given: str | None) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", given or ""))


def _at(given: str | None) -> At:
    return tuple((axis, int(index)) for axis, index in re.findall(r"(\w+) = (\d+)", given or ""))


def _layout(mesh: str, given: str) -> Layout:
    states: list[tuple[str, State]] = []
    for axis, dim, extent, inner, kind in _STATE.findall(given):
        state = (
            Shard(int(dim), int(extent), int(inner or 1))
            if dim
            else msgspec.convert({"kind": kind, "type": "partial"}, Partial)
        )
        states.append((axis, state))
    return Layout(mesh, tuple(states))


def _move(f: re.Match[str]) -> Step:
    src, into, at = int(f[2]), int(f[3]), _at(f[5])
    match f[1]:
        case "slice":
            return Slice(src, into, at)
        case "collect":
            return Collect(src, into, at)
        case "commit":
            return Commit(src, into)
        case _:
            return Accumulate(src, into, int(f[4]) if f[4] else -1, at)


_MAKE: dict[str, Callable[[re.Match[str]], Step]] = {
    "call": lambda f: Call(int(f[1]), int(f[2]), _numbers(f[3]), _numbers(f[4]), f[5], _at(f[6])),
    "move": _move,
    "collective": lambda f: msgspec.structs.replace(
        Collective("all_reduce", int(f[2]), int(f[3]), _words(f[4]), int(f[5]), int(f[6]), _at(f[7])), kind=f[1]
    ),
    "send": lambda f: Send(int(f[1]), int(f[2]), int(f[3]), _at(f[4])),
    "recv": lambda f: Recv(int(f[1]), int(f[2]), int(f[3]), int(f[4]) if f[4] else -1, _at(f[5])),
    "mask": lambda f: Mask(int(f[1]), int(f[2]), _words(f[3]), _at(f[4])),
    "offload": lambda f: Offload(int(f[1]), int(f[2]), "host" if f[3] == "host" else "device"),
}


def parse_step(line: str) -> Step | None:
    """The step that a line shows, if it shows one."""
    for kind, pattern in _STEPS.items():
        found = pattern.fullmatch(line)
        if found is not None:
            return _MAKE[kind](found)
    return None


def parse_program(given: str) -> Program:
    """The Program that a text shows. Raises :class:`UsageError` naming the line that is none."""
    reader = _Reader()
    lines = given.splitlines()
    for number, line in enumerate(lines[1:], 2):
        if line.strip() and not reader.read(line.strip()):
            raise _wrong(number, line, "program")
    return reader.program(_numbers(lines[0]))


class _Reader:
    """A Program being read, line by line."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.blocks: list[tuple[re.Match[str], list[Step]]] = []
        self.order: list[Item] = []
        self.frees: list[tuple[int, ...]] = []
        self.buffers: list[Buffer] = []
        self.named: dict[str, dict[str, int]] = {"input": {}, "state": {}, "output": {}, "gradient": {}}
        self.memory = (0, 0)

    def read(self, line: str) -> bool:
        """Whether the line was one of a Program's."""
        if found := _VALUE.fullmatch(line):
            over, terms = _words(found[4]), _numbers(found[5])
            self.values.append(Value(_name(found[1]), _layout(found[2], found[3]), over, terms))
        elif found := _NAMED.fullmatch(line):
            self.named[found[1]][_name(found[2])] = int(found[3])
        elif found := _BLOCK.fullmatch(line):
            self.blocks.append((found, []))
        elif found := _RUN.fullmatch(line):
            frees = int(found[5]) if found[5] else -1
            self.order.append(Item(int(found[1]), int(found[2]), int(found[3]), int(found[4]), frees))
        elif found := re.fullmatch(r"free \d+: (.*)", line):
            self.frees.append(_numbers(found[1]))
        elif found := re.fullmatch(r"buffer %(\d+): (\d+) at ([\d ]*)", line):
            self.buffers.append(Buffer(int(found[1]), int(found[2]), _numbers(found[3])))
        elif found := re.fullmatch(r"arena (\d+) peak (\d+)", line):
            self.memory = int(found[1]), int(found[2])
        elif self.blocks and (step := parse_step(line)) is not None:
            self.blocks[-1][1].append(step)
        else:
            return False
        return True

    def program(self, workers: tuple[int, ...]) -> Program:
        blocks = tuple(_block(found, steps) for found, steps in self.blocks)
        return Program(
            workers, tuple(self.values), blocks, tuple(self.order), tuple(self.frees), self.named["input"],
            self.named["state"], self.named["output"], self.named["gradient"], tuple(self.buffers), *self.memory,
        )  # fmt: skip


def _block(found: re.Match[str], steps: list[Step]) -> Block:
    fields: dict[str, Any] = {"name": _name(found[1]), "kind": found[2], "mesh": found[3], "steps": []}
    fields |= {"over": _words(found[4]), "lane": found[5], "stage": int(found[6])}
    return msgspec.structs.replace(msgspec.convert(fields, Block), steps=tuple(steps))
