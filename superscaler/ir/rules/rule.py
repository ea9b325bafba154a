"""Split rules: for one op, its named dims and where each occurs in its operands.

A rule is written like an einsum: ``"b h, h o -> b o"``. Factors of one tensor dim stand in parentheses, outermost
first: ``"(b s) h -> b s h"``. ``1`` is a dim of size one (or broadcast), ``3`` a factor of three that is never split.
``v!`` is a dim that must be whole; ``v^max`` and ``v^logsumexp`` are reductions of another kind than a sum. A dim that
an output lacks is reduced there: splitting it makes that output partial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod

import msgspec

from superscaler.errors import SplitError
from superscaler.ir.graph import Op
from superscaler.ir.layout import Layout, Partial, PartialKind, Shard, Space, State

Shape = tuple[int, ...]
Factor = str | int
Operand = tuple[tuple[Factor, ...], ...]  # per tensor dim: its factors, outermost first


class Dim(msgspec.Struct, frozen=True):
    """A named dim of an op. ``whole``: must not be split. ``reduce``: the kind of partial where an output lacks it."""

    size: int
    whole: bool = False
    reduce: PartialKind = "sum"


class Split(msgspec.Struct, frozen=True, array_like=True):
    """How one op is split along one axis: a digit of the dim ``dim``, or a partial passed through (``dim="+"``).

    ``"+"``: the op is linear in the inputs numbered in ``inputs``; they are partial sums, and so are the outputs.
    """

    dim: str
    extent: int = 1
    inner: int = 1
    inputs: tuple[int, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether a partial is passed through, rather than a dim split."""
        return self.dim == "+"

    def __str__(self) -> str:
        return self.dim + (f"({self.extent}/{self.inner})" if self.inner != 1 else "")


class Rule(msgspec.Struct, frozen=True):
    """The split rule of one op at its shapes.

    ``linear``: groups of inputs in which the op is jointly linear while the others are held fixed.
    ``contiguous``: dims whose part must be one interval (the op computes with their first index).
    """

    family: str
    dims: dict[str, Dim]
    ins: tuple[Operand, ...]
    outs: tuple[Operand, ...]
    linear: tuple[tuple[int, ...], ...] = ()
    contiguous: tuple[str, ...] = ()
    discovered: bool = False

    def __str__(self) -> str:
        def mark(name: str) -> str:
            dim = self.dims[name]
            return name + ("!" if dim.whole else f"^{dim.reduce}" if dim.reduce != "sum" else "")

        def dim(factors: tuple[Factor, ...]) -> str:
            names = [mark(f) if isinstance(f, str) else str(f) for f in factors]
            return names[0] if len(names) == 1 else "(" + " ".join(names) + ")" if names else "1"

        def side(operands: tuple[Operand, ...]) -> str:
            return ", ".join(" ".join(dim(factors) for factors in operand) for operand in operands)

        return f"{side(self.ins)} -> {side(self.outs)}"


Builder = Callable[[Op, tuple[Shape, ...], tuple[Shape, ...]], "Rule | str"]


class Spec(msgspec.Struct, frozen=True):
    """One row of a family's table: an op's rule as text, or a builder of it for ops of any rank.

    ``linear`` as in :class:`Rule`; ``contiguous`` likewise; ``shown``: what a builder builds, for people to read.
    """

    rule: str | Builder
    linear: tuple[tuple[int, ...], ...] = ()
    contiguous: tuple[str, ...] = ()
    shown: str = ""


_TOKEN = re.compile(r"\(|\)|[A-Za-z_][A-Za-z_0-9]*(?:\^(?:sum|max|min|logsumexp))?!?|\d+")
_OTHER = "another dim, fewer ways, or the op whole: `superscaler ops` lists the dims"


def _operand(text: str) -> list[list[str]]:
    dims: list[list[str]] = []
    inside: list[str] | None = None
    for token in _TOKEN.findall(text):
        if token == "(":
            inside = []
        elif token == ")":
            dims.append(inside or [])
            inside = None
        elif inside is not None:
            inside.append(token)
        else:
            dims.append([] if token == "1" else [token])
    return dims


def _side(text: str, count: int) -> list[list[list[str]]]:
    if not text.strip():  # no operand, or one scalar
        return [[]] if count == 1 else []
    return [_operand(part) for part in text.split(",")]


def parse_rule(
    text: str,
    ins: Sequence[Shape],
    outs: Sequence[Shape],
    *,
    family: str,
    sizes: Mapping[str, int] | None = None,
    linear: tuple[tuple[int, ...], ...] = (),
    contiguous: tuple[str, ...] = (),
) -> Rule:
    """The rule that ``text`` states for operands of these shapes.

    Sizes of factors inside parentheses come from other occurrences, from ``sizes``, or as the one unknown left over.
    Raises :class:`SplitError` if ranks or sizes do not fit.
    """
    left, right = text.split("->")
    sides = [*_side(left, len(ins)), *_side(right, len(outs))]
    shapes = [*ins, *outs]
    if len(sides) != len(shapes) or any(len(dims) != len(shape) for dims, shape in zip(sides, shapes, strict=False)):
        raise SplitError(
            f"rule {text!r} does not fit operands of shapes {list(ins)} -> {list(outs)}",
            hint="an operand of the rule for each tensor, a factor for each dim",
        )
    known: dict[str, int] = dict(sizes or {})
    whole: set[str] = set()
    reduce: dict[str, PartialKind] = {}

    def name_of(token: str) -> Factor:
        if token.isdigit():
            return int(token)
        name, _, kind = token.rstrip("!").partition("^")
        if token.endswith("!"):
            whole.add(name)
        if kind:
            reduce[name] = kind  # type: ignore[assignment]
        return name

    operands = [tuple(tuple(name_of(t) for t in factors) for factors in dims) for dims in sides]
    for _ in range(3):  # sizes found in one operand settle merged dims of another
        for operand, shape in zip(operands, shapes, strict=True):
            for factors, size in zip(operand, shape, strict=True):
                missing = [f for f in factors if isinstance(f, str) and f not in known]
                if len(missing) == 1:
                    rest = prod(f if isinstance(f, int) else known[f] for f in factors if f != missing[0])
                    known[missing[0]] = size // rest if rest else 0
    for operand, shape in zip(operands, shapes, strict=True):
        for factors, size in zip(operand, shape, strict=True):
            if any(isinstance(f, str) and f not in known for f in factors):
                raise SplitError(
                    f"rule {text!r}: sizes of {factors} cannot be told from shapes {shapes}",
                    hint="state all factors of a dim but one",
                )
            if prod(f if isinstance(f, int) else known[f] for f in factors) != size:
                raise SplitError(
                    f"rule {text!r}: {factors} is not a dim of size {size}",
                    hint="an operand of the rule for each tensor, a factor for each dim",
                )
    names = {f for operand in operands for factors in operand for f in factors if isinstance(f, str)}
    dims = {n: Dim(known[n], n in whole, reduce.get(n, "sum")) for n in sorted(names)}
    return Rule(family, dims, tuple(operands[: len(ins)]), tuple(operands[len(ins) :]), linear, contiguous)


def _digit(rule: Rule, operand: Operand, split: Split) -> Shard | None:
    """The digit of a tensor that splitting a dim of the op splits; None where the operand lacks the dim."""
    for index, factors in enumerate(operand):
        for position, factor in enumerate(factors):
            if factor == split.dim:
                after = prod(f if isinstance(f, int) else rule.dims[f].size for f in factors[position + 1 :])
                return Shard(index, split.extent, split.inner * after)
    return None


def split_state(rule: Rule, split: Split, *, output: bool, index: int) -> State | None:
    """The state, along an axis split so, of the op's input or output number ``index``."""
    if split.passes:
        return Partial() if output or index in split.inputs else None
    operand = rule.outs[index] if output else rule.ins[index]
    digit = _digit(rule, operand, split)
    if digit is None and output:
        return Partial(rule.dims[split.dim].reduce)
    return digit


def dim_of(rule: Rule, shard: Shard, *, output: bool, index: int) -> Split | None:
    """The split of the op that makes its input or output number ``index`` lie as ``shard`` says, if there is one."""
    operand = rule.outs[index] if output else rule.ins[index]
    if shard.dim >= len(operand):
        return None
    after = 1
    for factor in reversed(operand[shard.dim]):
        size = factor if isinstance(factor, int) else rule.dims[factor].size
        if shard.inner >= after and shard.inner % after == 0 and size > 0:
            inner = shard.inner // after
            if inner * shard.extent <= size and size % (inner * shard.extent) == 0:
                if isinstance(factor, int) or rule.dims[factor].whole:
                    return None
                contiguous = factor not in rule.contiguous or inner * shard.extent == size
                return Split(factor, shard.extent, inner) if contiguous else None
        after *= size
    return None


Splits = tuple[tuple[str, Split], ...]


def check_splits(op: Op, rule: Rule, splits: Splits) -> None:
    """Raise :class:`SplitError` unless the rule allows these splits."""
    for axis, split in splits:
        if split.passes:
            if split.inputs not in rule.linear:
                raise SplitError(
                    f"{op.name} ({op.target}) is not linear in its inputs {split.inputs}: no partial may pass through",
                    hint=_OTHER,
                )
            continue
        dim = rule.dims.get(split.dim)
        if dim is None:
            names = ", ".join(n for n, d in rule.dims.items() if not d.whole) or "none"
            raise SplitError(f"{op.name} ({op.target}) has no dim {split.dim!r}", hint=f"its dims are: {names}")
        if dim.whole:
            raise SplitError(
                f"{op.name} ({op.target}): dim {split.dim!r} must stay whole",
                f"rule: {rule}",
                f"axis: {axis}",
                hint=_OTHER,
            )
        if dim.size % (split.extent * split.inner):
            raise SplitError(f"{op.name}: dim {split.dim!r} of size {dim.size} has no digit {split}", hint=_OTHER)
        if split.dim in rule.contiguous and split.extent * split.inner != dim.size:
            raise SplitError(
                f"{op.name} ({op.target}): dim {split.dim!r} can only be split into contiguous parts", hint=_OTHER
            )


@lru_cache(maxsize=65536)
def _layouts(
    rule_key: _Keyed, splits: Splits, mesh: str, space: Space
) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
    rule = rule_key.rule

    def layout(output: bool, index: int) -> Layout:
        return space.layout(mesh, {a: split_state(rule, s, output=output, index=index) for a, s in splits})

    ins = tuple(layout(False, i) for i in range(len(rule.ins)))
    return ins, tuple(layout(True, i) for i in range(len(rule.outs)))


class _Keyed:
    """A rule hashed by identity: rules are interned by ``rule_for``."""

    __slots__ = ("rule",)

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def __hash__(self) -> int:
        return id(self.rule)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.rule is self.rule


def op_layouts(rule: Rule, splits: Splits, mesh: str, space: Space) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
    """The layouts that an op split so needs of its inputs, and those that it gives its outputs."""
    return _layouts(_Keyed(rule), splits, mesh, space)
