"""Which change of layout each kind of move really makes: pure judgements, each a reason or None.

A part along an axis that shards a digit lies inside the parts of the axes that shard the same digit further out. So an
axis may only start or stop sharding a digit where no other axis shards that digit further in: the inner parts would
move.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from superscaler.ir.check.fault import FaultKind
from superscaler.ir.check.sizes import digit_of
from superscaler.ir.layout import Layout, Partial, Shard, Space, State
from superscaler.ir.program import CollectiveKind

Reason = tuple[FaultKind, str]


def mismatch(have: Layout, need: Layout) -> Reason | None:
    """Why a value held as ``have`` cannot be read as ``need``."""
    if have == need:
        return None
    if have.mesh != need.mesh:
        return "wrong layout", f"it lies on mesh {have.mesh!r}, and is read on {need.mesh!r}"
    for axis in dict.fromkeys((*(a for a, _ in have.states), *(a for a, _ in need.states))):
        mine, wanted = have.state(axis), need.state(axis)
        if mine != wanted:
            return _difference(axis, mine, wanted)
    return "wrong layout", f"{have} is not {need}"


def _difference(axis: str, mine: State | None, wanted: State | None) -> Reason:
    if isinstance(mine, Partial) and isinstance(wanted, Partial):
        return (
            "wrong kind of partial",
            f"along {axis!r} it is a term of a {mine.kind}, read as one of a {wanted.kind}",
        )
    if isinstance(mine, Partial):
        return "partial read as complete", f"along {axis!r} it is still a term of a {mine.kind}"
    if isinstance(wanted, Partial):
        return "complete read as partial", f"along {axis!r} every part has the complete value, read as a term"
    return "wrong layout", f"along {axis!r} it lies as {mine or 'a replica'}, read as {wanted or 'a replica'}"


def further_in(space: Space, layout: Layout, axis: str, shard: Shard) -> str | None:
    """An axis of ``layout`` that shards the digit of ``shard`` inside of ``axis``."""
    for name, state in layout.states:
        same = isinstance(state, Shard) and digit_of(state) == digit_of(shard)
        if same and name != axis and space.rank(name) > space.rank(axis):
            return name
    return None


def _moved(inner: str, state: Shard, axis: str) -> str:
    return f"{inner!r} shards the digit {state} inside of {axis!r}: the parts would move"


def finer(space: Space, coarse: Layout, fine: Layout) -> Reason | None:
    """Why a part as ``fine`` is not contained in the part as ``coarse`` at the same coordinates of one mesh.

    ``fine`` shards along more axes and is otherwise equal.
    """
    for axis, state in coarse.states:
        if fine.state(axis) != state:
            return _difference(axis, state, fine.state(axis))
    for axis, state in fine.states:
        if coarse.state(axis) is not None:
            continue
        if not isinstance(state, Shard):
            return "complete read as partial", f"along {axis!r} a replica is taken for a term"
        inner = further_in(space, coarse, axis, state)
        if inner is not None:
            return "wrong region", _moved(inner, state, axis)
    return None


def gathered(space: Space, have: Layout, axes: Iterable[str]) -> tuple[Layout | None, Reason | None]:
    """The layout after the shards along ``axes`` are put together, or why they cannot be."""
    rest = have.without(*axes)
    for axis in axes:
        state = have.state(axis)
        if not isinstance(state, Shard):
            kind: FaultKind = "partial read as complete" if isinstance(state, Partial) else "wrong layout"
            return None, (kind, f"along {axis!r} there is no shard to gather: it lies as {state or 'a replica'}")
        inner = further_in(space, rest, axis, state)
        if inner is not None:
            return None, (
                "wrong region",
                f"{inner!r} shards the digit {state} inside of {axis!r}: the parts would move",
            )
    return rest, None


def reduced(have: Layout, axes: Iterable[str]) -> tuple[Layout | None, Reason | None]:
    """The layout after the terms along ``axes`` are combined, or why there are none."""
    for axis in axes:
        state = have.state(axis)
        if not isinstance(state, Partial):
            return None, (
                "complete read as partial",
                f"along {axis!r} it lies as {state or 'a replica'}: a reduction would count it more than once",
            )
    return have.without(*axes), None


@lru_cache(maxsize=65536)
def collective(space: Space, kind: CollectiveKind, have: Layout, gives: Layout, axes: tuple[str, ...]) -> Reason | None:
    """Why a collective of ``kind`` along ``axes`` of one mesh does not lead from ``have`` to ``gives``."""
    if kind == "all_reduce":
        result, why = reduced(have, axes)
        return why or (mismatch(result, gives) if result is not None else None)
    if kind == "all_gather":
        result, why = gathered(space, have, axes)
        return why or (mismatch(result, gives) if result is not None else None)
    rest, why = reduced(have, axes) if kind == "reduce_scatter" else gathered(space, have, axes)
    if why is not None or rest is None:
        return why
    return _scattered(space, kind, have, rest, gives, axes)


def _scattered(
    space: Space, kind: str, have: Layout, rest: Layout, gives: Layout, axes: tuple[str, ...]
) -> Reason | None:
    for axis in axes:
        state = gives.state(axis)
        if not isinstance(state, Shard):
            return "wrong layout", f"a {kind} along {axis!r} gives a shard, not {state or 'a replica'}"
        if state == have.state(axis):
            return "wrong layout", f"a {kind} along {axis!r} would leave the shard {state} as it is"
    return mismatch(rest, gives.without(*axes)) or finer(space, rest, gives)
