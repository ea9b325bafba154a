"""What the builders of rules share: names of dims by rank, operands found in ``Op.args``, linear groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from superscaler.ir.graph import Op
from superscaler.ir.rules.rule import Shape

_NAMES: dict[int, tuple[str, ...]] = {0: (), 1: ("h",), 2: ("b", "h"), 3: ("b", "s", "h"), 4: ("b", "h", "s", "d")}


def names(rank: int) -> tuple[str, ...]:
    """Names of the dims of a tensor of which only the rank is known: ``b s h`` for three dims."""
    return _NAMES[rank] if rank in _NAMES else ("b", "h", "s", "d", *(f"d{i}" for i in range(4, rank)))


def joined(dims: Sequence[str]) -> str:
    """One operand as rule text; an empty name is a dim of size one."""
    return " ".join(dim or "1" for dim in dims)


def rule_text(ins: Sequence[Sequence[str]], outs: Sequence[Sequence[str]]) -> str:
    """The text of a rule from the dims of its operands."""
    return f"{', '.join(map(joined, ins))} -> {', '.join(map(joined, outs))}"


def marked(dims: Sequence[str], positions: Sequence[int], mark: str) -> list[str]:
    """The names with ``mark`` (``"!"``, ``"^max"``) put behind those at ``positions`` (negative ones count back)."""
    at = {p % len(dims) for p in positions} if dims else set[int]()
    return [name + mark if i in at else name for i, name in enumerate(dims)]


def broadcast_dims(shape: Shape, out: Shape, dims: Sequence[str]) -> list[str]:
    """The dims of an operand of ``shape`` that is broadcast to ``out``, whose dims are named ``dims``."""
    skipped = len(out) - len(shape)
    return [
        dims[skipped + i].rstrip("!") if size == out[skipped + i] else ""
        for i, size in enumerate(shape)
    ]  # fmt: skip


def input_of(arg: Any) -> int | None:
    """The number of the input that an argument stands for (``"$3"`` -> 3), or None if it is no input."""
    return int(arg[1:]) if isinstance(arg, str) and arg[:1] == "$" and arg[1:].isdigit() else None


def arg(op: Op, position: int, default: Any = None) -> Any:
    """A positional argument, or ``default`` where the op does not give it."""
    given = positional(op)
    return given[position] if position < len(given) else default


def positional(op: Op) -> tuple[Any, ...]:
    """The arguments without the trailing ``{"kw": …}``."""
    args = op.args
    return args[:-1] if args and isinstance(args[-1], dict) and "kw" in args[-1] else args


def keywords(op: Op) -> dict[str, Any]:
    """The keyword arguments."""
    last = op.args[-1] if op.args else None
    return last["kw"] if isinstance(last, dict) and "kw" in last else {}


def dims_arg(value: Any, rank: int) -> list[int]:
    """A ``dim`` argument as sorted non-negative dims; none or an empty list means all."""
    if value is None or value == [] or value == ():
        return list(range(rank))
    given = [value] if isinstance(value, int) else list(value)
    return sorted(d % max(rank, 1) for d in given)


def linear_groups(op: Op, groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups of argument positions in which a function is jointly linear, as groups of inputs of this op.

    A group falls away if a member is a constant other than zero (the op is then affine, not linear), or if one of its
    inputs is used outside the group as well (``x * x`` is not linear in ``x``).
    """
    given = positional(op)
    found: list[tuple[int, ...]] = []
    for group in groups:
        members = [given[p] for p in group if p < len(given)]
        inside = [i for i in map(input_of, members) if i is not None]
        outside = [input_of(a) for p, a in enumerate(given) if p not in group]
        constants = [a for a in members if input_of(a) is None]
        if inside and not set(inside) & set(outside) and all(c == 0 for c in constants):
            found.append(tuple(sorted(set(inside))))
    return tuple(dict.fromkeys(found))
