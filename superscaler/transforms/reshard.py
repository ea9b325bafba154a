"""Resharding: the cheapest transfer between two layouts of one tensor, and what it costs.

The one place where this is decided: the scheduler asks for the cost, `communicate` emits the moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from superscaler.ir.layout import Layout, Mesh, Partial, Shard, Space, State
from superscaler.ir.program import CollectiveKind, Piece, Route
from superscaler.ir.region import Region
from superscaler.transforms.digits import overlap

MoveKind = Literal["slice"] | CollectiveKind


class Move(msgspec.Struct, frozen=True):
    """One step of a resharding on one mesh: ``kind`` over ``axes`` gives ``layout``."""

    kind: MoveKind
    axes: tuple[str, ...]
    layout: Layout


def _digit(state: State | None) -> tuple[int, int, int] | None:
    return (state.dim, state.extent, state.inner) if isinstance(state, Shard) else None


def _nested(space: Space, layout: Layout, digit: tuple[int, int, int]) -> list[str]:
    """The axes of a layout that split a digit, outermost first."""
    return [name for name, state in layout.states if _digit(state) == digit]


def _replace(space: Space, layout: Layout, axis: str, state: State | None) -> Layout:
    states: dict[str, State | None] = {**dict(layout.states), axis: state}
    return space.layout(layout.mesh, states)


def _innermost(space: Space, layout: Layout, axis: str, state: Shard) -> bool:
    """Whether no other axis splits the digit of ``state`` inside of ``axis``."""
    digit = (state.dim, state.extent, state.inner)
    return not any(_digit(s) == digit and space.rank(a) > space.rank(axis) for a, s in layout.states if a != axis)


def _may_split(space: Space, layout: Layout, axis: str, state: Shard) -> bool:
    """Whether ``axis`` may start to split a digit: it would be the innermost there, and no other digit overlaps."""
    others = [s for a, s in layout.states if isinstance(s, Shard) and a != axis and s.dim == state.dim]
    apart = not any(overlap((s.extent, s.inner), (state.extent, state.inner)) for s in others)
    return apart and _innermost(space, layout, axis, state)


def _even(space: Space, layout: Layout, shape: tuple[int, ...], axis: str, state: Shard) -> bool:
    """Whether all parts along the axis are equal: collectives that need it are then the fast ones."""
    ways = space.axis(axis).ways
    for name in _nested(space, layout, (state.dim, state.extent, state.inner)):
        if name != axis:
            ways *= space.axis(name).ways
    return state.extent % ways == 0 and space.axis(axis).sizes is None


def moves(space: Space, shape: tuple[int, ...], have: Layout, need: Layout) -> list[Move]:
    """The steps from ``have`` to ``need`` on one mesh; time axes must already agree.

    Partials are reduced first (scattered where the target is split), then what is split otherwise is exchanged or
    gathered, innermost axes first, and what is only finer is sliced.
    """
    assert have.mesh == need.mesh
    steps: list[Move] = []
    now = have

    def current() -> Layout:
        return now

    def step(kind: MoveKind, axes: tuple[str, ...], layout: Layout) -> None:
        nonlocal now
        steps.append(Move(kind, axes, layout))
        now = layout

    def go(axis: str, kind: CollectiveKind, state: State | None) -> None:
        step(kind, (axis,), _replace(space, now, axis, state))

    for axis, state in reversed(have.states):
        want = need.state(axis)
        if not isinstance(state, Partial) or want == state:
            continue
        scatter = isinstance(want, Shard) and state.kind == "sum" and _may_split(space, now, axis, want)
        if scatter and isinstance(want, Shard) and _even(space, need, shape, axis, want):
            go(axis, "reduce_scatter", want)
    sums = [(a, s) for a, s in now.states if isinstance(s, Partial) and need.state(a) != s]
    for kind in ("sum", "max", "min", "logsumexp"):
        axes = tuple(a for a, s in sums if s.kind == kind)
        if axes:
            step("all_reduce", axes, now.without(*axes))
    _regather(space, need, current, go)
    if now != need:
        finer = tuple(a for a, s in need.states if now.state(a) != s)
        step("slice", finer, need)
    return steps


def _regather(
    space: Space, need: Layout, now: Callable[[], Layout], go: Callable[[str, CollectiveKind, State | None], None]
) -> None:
    """Exchange or gather every axis whose shards do not stay, and those that stand inside such a one."""
    pending = True
    while pending:
        pending = False
        for axis, state in reversed(now().states):
            if not isinstance(state, Shard):
                continue
            want = need.state(axis)
            if want == state and _stays(space, now(), need, axis, state):
                continue
            if not _innermost(space, now(), axis, state):
                continue
            bare = now().without(axis)
            if (
                isinstance(want, Shard)
                and want != state
                and _may_split(space, bare, axis, want)
                and _prefix_agrees(space, bare, need, axis, want)
            ):
                go(axis, "all_to_all", want)
            else:
                go(axis, "all_gather", None)
            pending = True
            break


def _prefix_agrees(space: Space, now: Layout, need: Layout, axis: str, want: Shard) -> bool:
    """Whether the axes that split ``want``'s digit outside of ``axis`` are already as needed."""
    digit = (want.dim, want.extent, want.inner)
    outer = [a for a in _nested(space, need, digit) if space.rank(a) < space.rank(axis)]
    return _nested(space, now, digit) == outer


def _stays(space: Space, now: Layout, need: Layout, axis: str, state: Shard) -> bool:
    """Whether a shard that the target has too may stay: the axes outside it on its digit do not change."""
    digit = (state.dim, state.extent, state.inner)
    have, want = _nested(space, now, digit), _nested(space, need, digit)
    return have[: have.index(axis) + 1] == want[: want.index(axis) + 1]


def region_at(space: Space, mesh: Mesh, shape: tuple[int, ...], layout: Layout, device: int) -> Region:
    """The region that a device holds; time axes in the layout are taken whole."""
    spatial = Layout(layout.mesh, tuple(s for s in layout.states if space.axis(s[0]).kind == "space"))
    return space.region(shape, spatial, mesh.coords(device))


def route(space: Space, tensor: str, shape: tuple[int, ...], source: Layout, target: Layout) -> Route:
    """The pieces by which the devices of ``target``'s mesh get their regions from those of ``source``'s.

    A device that holds a piece itself keeps it; else the senders of equal pieces take turns. No partials.
    """
    src_mesh, dst_mesh = space.mesh(source.mesh), space.mesh(target.mesh)
    holders: dict[Region, list[int]] = {}
    for device in src_mesh.devices:
        holders.setdefault(region_at(space, src_mesh, shape, source, device), []).append(device)
    members = {region: set(owners) for region, owners in holders.items()}
    turns: dict[Region, int] = {}
    pieces: list[Piece] = []
    for device in dst_mesh.devices:
        want = region_at(space, dst_mesh, shape, target, device)
        # Distinct regions of one layout are disjoint: one that is equal is the only one that is needed.
        near = {want: holders[want]} if want in holders else holders
        for region, owners in near.items():
            common = region & want
            if common.empty and shape:
                continue
            if device in members[region]:
                sender = device
            else:
                turn = turns.get(region, 0)
                turns[region] = turn + 1
                sender = owners[turn % len(owners)]
            pieces.append(Piece(sender, device, tuple(tuple(span) for span in common)))
    return Route(tensor, source, target, tuple(pieces))


def seconds(kind: MoveKind, size: int, ways: int, bandwidth: float, latency: float) -> float:
    """Time of one move of a tensor whose complete part is ``size`` bytes, by ring algorithms over ``ways`` members."""
    if kind == "slice" or ways == 1:
        return 0.0
    share = (ways - 1) / ways
    factor = {"all_reduce": 2.0, "reduce_scatter": 1.0, "all_gather": 1.0, "all_to_all": 1.0 / ways}[kind]
    hops = (2 if kind == "all_reduce" else 1) * (ways - 1) if kind != "all_to_all" else ways - 1
    return factor * share * size / bandwidth + hops * latency
