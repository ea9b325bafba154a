"""A sum over several meshes: each worker brings a term, the terms of all meshes make up the whole."""

from __future__ import annotations

from superscaler.ir.check.bodies import Meeting
from superscaler.ir.check.fault import Fault, FaultKind, fault
from superscaler.ir.check.ops import Held
from superscaler.ir.check.regions import Regions
from superscaler.ir.check.scope import Scope
from superscaler.ir.layout import Partial
from superscaler.ir.program import Collective


def check_union(scope: Scope, members: list[Meeting], regions: Regions) -> None:
    """Within each group, each mesh brings every term of its share exactly once, and the shares are disjoint.

    Raises a :class:`Fault` otherwise.
    """
    first = members[0]
    step, dst = first.step, first.dst
    assert isinstance(step, Collective)
    assert dst is not None
    brings = {worker: meeting for meeting in members for worker in meeting.role.workers}
    if step.kind != "all_reduce" or dst.layout.partial:
        raise _wrong("wrong group", f"a {step.kind} from one mesh to another", first, right="an all_reduce")
    for meeting in members:
        _same_tensor(meeting, dst)
    for group in scope.entry.groupings[step.grouping].groups:
        _group(scope, group, brings, dst, regions)


def _wrong(kind: FaultKind, what: str, meeting: Meeting, *why: str, right: str | None = None) -> Fault:
    return fault(kind, what, meeting.role.place(meeting.block, None, meeting.step), *why, right=right)


def _same_tensor(meeting: Meeting, dst: Held) -> None:
    src = meeting.src
    assert src is not None
    if src.tensor != dst.tensor:
        raise _wrong(
            "wrong tensor", f"communication {meeting.step.comm} gets {src.tensor!r} for {dst.tensor!r}", meeting
        )
    states = [state for _, state in src.layout.states]
    if any(isinstance(state, Partial) and state.kind != "sum" for state in states):
        raise _wrong("wrong kind of partial", f"terms of several meshes are added: {src.layout}", meeting)


def _group(scope: Scope, group: tuple[int, ...], brings: dict[int, Meeting], dst: Held, regions: Regions) -> None:
    shares: dict[str, list[int]] = {}
    for worker in group:
        src = brings[worker].src
        assert src is not None
        shares.setdefault(src.layout.mesh, []).append(worker)
    count = len(scope.addends.get(dst.tensor, ())) or 1
    every = frozenset(range(count))
    whole = every if dst.terms is None else dst.terms
    seen: frozenset[int] = frozenset()
    for workers in shares.values():
        meeting = brings[workers[0]]
        src = meeting.src
        assert src is not None
        _line(scope, workers, brings, src)
        _regions(scope, workers, src, dst, regions, meeting)
        terms = every if src.terms is None else src.terms
        if terms & seen:
            raise _wrong("counted twice", f"two meshes bring term {min(terms & seen)} of {dst.tensor!r}", meeting)
        seen |= terms
    if seen != whole:
        raise _wrong(
            "reduction too early", f"no mesh brings term {min(seen ^ whole)} of {dst.tensor!r}", brings[group[0]],
            right=f"all of its {len(whole)} terms",
        )  # fmt: skip


def _line(scope: Scope, workers: list[int], brings: dict[int, Meeting], src: Held) -> None:
    """The members of one mesh are one line along the axes in which its value is partial."""
    meeting = brings[workers[0]]
    for worker in workers[1:]:
        if brings[worker].src != src:
            raise _wrong(
                "mixed partials", f"members of mesh {src.layout.mesh!r} bring different things", brings[worker]
            )
    axes = tuple(axis for axis in src.layout.partial if axis in scope.space.mesh(src.layout.mesh).axes)
    lines = scope.space.mesh(src.layout.mesh).lines(axes)
    line = next(line for line in lines if workers[0] in line)
    if set(line) != set(workers):
        more = set(workers) - set(line)
        kind: FaultKind = "complete read as partial" if more else "wrong group"
        raise _wrong(
            kind, f"{src.tensor!r} as {src.layout} is brought by workers {workers[:16]}", meeting,
            right=f"each term once: workers {list(line)[:16]}",
        )  # fmt: skip


def _regions(scope: Scope, workers: list[int], src: Held, dst: Held, regions: Regions, meeting: Meeting) -> None:
    """Every member's part is the part that it gets."""
    if any(scope.space.axis(axis).kind == "time" for axis, _ in (*src.layout.states, *dst.layout.states)):
        raise _wrong("wrong time index", f"{src.tensor!r} is summed over meshes per time index", meeting)
    if not src.layout.without(*src.layout.partial).states and not dst.layout.states:
        return
    shape = scope.graph.tensor[src.tensor].shape
    for worker in workers:
        have = regions.of(shape, src.layout, worker, {})
        want = regions.of(shape, dst.layout, worker, {})
        if have != want:
            raise _wrong("wrong region", f"worker {worker} brings {have} of {src.tensor!r} and gets {want}", meeting)
