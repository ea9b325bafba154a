"""The rule of an op: from the cache, or by executing it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import msgspec
import torch

from superscaler.errors import SplitError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.rules import discovered, has_rule
from superscaler.ir.rules.rule import Rule, Shape, parse_rule
from superscaler.transforms.discover.isolate import Announce, Attempts, isolated
from superscaler.transforms.discover.recombine import Named, kinds_of, linear_groups, named_dims
from superscaler.transforms.discover.trial import Function, Trial, Untried, function_of, trial_of

_SECONDS = 60.0  # of one child
_DEATHS = 32  # children that one op may end
_REVISION = 2  # of the search: what an earlier one found is not used


def version_of(target: str) -> str:
    """Torch's version, that of the package whose name the op's namespace is, and that of the search itself."""
    room = target.partition(".")[0]
    try:
        owner = f", {room} {version(room)}"
    except PackageNotFoundError:
        owner = ""
    return f"torch {torch.__version__}{owner}, search {_REVISION}"


def discover(
    op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...], dtypes: Sequence[str], function: Function | None = None
) -> Rule:
    """The rule of ``op`` at these shapes, from the cache or by executing it.

    Raises :class:`SplitError` if the op has no tensor inputs, changes them, is random, or cannot be executed.
    """
    version = version_of(op.target)
    known = discovered.record(op.target)
    cached = discovered.find(op, ins, outs)
    if cached is not None and known is not None and known.version == version:
        return cached
    rule = search(op, ins, outs, dtypes, function or function_of(op.target))
    discovered.save(op.target, version, discovered.Found(discovered.spelled(op.args), ins, outs, rule))
    return rule


def discover_missing(graph: Graph) -> tuple[str, ...]:
    """Discover rules for all ops of ``graph`` that have none; the targets whose rules are discovered ones."""
    targets: dict[str, None] = {}
    with_rule = {t for t in {op.target for op in graph.ops} if has_rule(t) and not discovered.known(t)}
    for op in graph.ops:
        if op.target in with_rule:
            continue
        tensors = [graph.tensor[name] for name in op.inputs]
        outs = tuple(graph.tensor[name].shape for name in op.outputs)
        discover(op, tuple(t.shape for t in tensors), outs, [t.dtype for t in tensors])
        targets[op.target] = None
    return tuple(targets)


class _Answer(msgspec.Struct):
    """What a child found, or why it refused."""

    rule: Rule | None = None
    error: tuple[str, tuple[str, ...], str | None] | None = None


def search(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...], dtypes: Sequence[str], function: Function) -> Rule:
    """The rule of ``op``, by execution in a child process, without the cache.

    Attempts that end the child are not made again: what they would have shown does not become part of the rule.
    """
    refused: frozenset[str] = frozenset()
    while True:
        work = partial(_answer, op, ins, outs, dtypes, function, refused)
        ending = isolated(work, _SECONDS)
        if ending.result is not None:
            break
        if ending.late or ending.attempt is None or len(refused) >= _DEATHS:
            raise SplitError(
                f"op {op.target} cannot be executed to discover its rule",
                f"why: {ending.reason}",
                hint="state its rule: @superscaler.op(...)",
            )
        refused |= {ending.attempt}
    answer = msgspec.json.decode(ending.result, type=_Answer)
    if answer.rule is None:
        what, details, hint = answer.error or ("no rule", (), None)
        raise SplitError(what, *details, hint=hint)
    return answer.rule


def _answer(
    op: Op,
    ins: tuple[Shape, ...],
    outs: tuple[Shape, ...],
    dtypes: Sequence[str],
    function: Function,
    refused: frozenset[str],
    announce: Announce,
) -> bytes:
    attempts = Attempts(refused, announce)
    try:
        return msgspec.json.encode(_Answer(_search(trial_of(op, ins, outs, dtypes, function, attempts), ins, outs)))
    except Untried as error:
        if op.target.startswith("aten."):  # a function of its operands, if it is not tagged otherwise
            return msgspec.json.encode(_Answer(_whole(ins, outs)))
        return msgspec.json.encode(_Answer(error=(error.what, error.details, error.hint)))
    except SplitError as error:
        return msgspec.json.encode(_Answer(error=(error.what, error.details, error.hint)))


def _search(trial: Trial, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    text = _text(trial, named_dims(trial), len(outs))
    linear = linear_groups(trial)
    try:
        found = parse_rule(text, ins, outs, family="discovered", linear=linear)
    except SplitError:  # true of the small shapes only
        found = parse_rule(_text(trial, [], len(outs)), ins, outs, family="discovered", linear=linear)
    return Rule(found.family, found.dims, found.ins, found.outs, found.linear, discovered=True)


def _whole(ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> Rule:
    """The rule of an op that is not cut: whoever needs its results computes it from all of its operands."""
    left = [[f"x{i}_{d}!" for d in range(len(shape))] for i, shape in enumerate(ins)]
    right = [[f"y{k}_{d}!" for d in range(len(shape))] for k, shape in enumerate(outs)]
    found = parse_rule(f"{_side(left)} -> {_side(right)}", ins, outs, family="discovered")
    return Rule(found.family, found.dims, found.ins, found.outs, discovered=True)


def _text(trial: Trial, dims: list[Named], outs: int) -> str:
    """The rule as text: named dims where they were found, whole ones everywhere else."""
    found = trial.run(trial.inputs(0))[:outs]
    left = [[f"x{i}_{d}!" for d in range(len(shape))] for i, shape in enumerate(trial.shapes)]
    right = [[f"y{k}_{d}!" for d in range(x.ndim)] for k, x in enumerate(found)]
    for number, (cut, way) in enumerate(sorted(dims, key=lambda named: min(named[0].items()))):
        name = chr(ord("a") + number) if number < 26 else f"d{number}"
        kinds = kinds_of(way[:outs]) - {"sum"}
        for i, d in cut.items():
            left[i][d] = f"{name}^{min(kinds)}" if kinds else name
        for k, w in enumerate(way[:outs]):
            if isinstance(w, int):
                right[k][w] = name
    return f"{_side(left)} -> {_side(right)}"


def _side(operands: list[list[str]]) -> str:
    return ", ".join(" ".join(dims) for dims in operands)
