"""Meetings: what the members of a communication bring is the same tensor, cut in the same way, in the right groups."""

from __future__ import annotations

from superscaler.ir.check.bodies import Meeting
from superscaler.ir.check.fault import Fault, FaultKind, fault
from superscaler.ir.check.matching import name_of
from superscaler.ir.check.regions import Regions
from superscaler.ir.check.routes import check_route
from superscaler.ir.check.scope import Scope, Terms
from superscaler.ir.check.unions import check_union
from superscaler.ir.layout import Mesh
from superscaler.ir.program import Collective, Recv, Route


def check_meetings(scope: Scope, meetings: list[Meeting], regions: Regions) -> None:
    """Raises a :class:`Fault` for what does not belong together. Groupings and routes are judged once."""
    together: dict[int, list[Meeting]] = {}
    judged: set[tuple[int, int, bool]] = set()
    lined: set[tuple[int, str, tuple[str, ...]]] = set()
    for meeting in meetings:
        together.setdefault(meeting.step.comm, []).append(meeting)
    for members in together.values():
        step, dst = members[0].step, members[0].dst
        if not isinstance(step, Collective) or dst is None:
            _check_transfer(scope, members, regions, judged)
            continue
        mesh = scope.space.mesh(dst.layout.mesh)
        key = (step.grouping, mesh.name, step.axes)
        if key not in lined:
            _check_groups(scope, step, members[0], mesh)
            lined.add(key)
        _check_collective(scope, members, mesh, regions)


def _wrong(kind: FaultKind, what: str, meeting: Meeting, *why: str, right: str | None = None) -> Fault:
    return fault(kind, what, meeting.role.place(meeting.block, None, meeting.step), *why, right=right)


def _check_groups(scope: Scope, step: Collective, first: Meeting, mesh: Mesh) -> None:
    """The groups are the mesh's lines along the axes of the collective."""
    groups, lines = scope.entry.groupings[step.grouping].groups, mesh.lines(step.axes)
    if set(groups) != set(lines) or len(groups) != len(lines):
        odd = next((g for g in groups if g not in set(lines)), groups[0] if groups else ())
        raise _wrong(
            "wrong group", f"{name_of(first.role, step)} runs in group {list(odd)[:16]}", first,
            right=f"the lines of mesh {mesh.name!r} along {list(step.axes)}, such as {list(lines[0])[:16]}",
        )  # fmt: skip


def _check_collective(scope: Scope, members: list[Meeting], mesh: Mesh, regions: Regions) -> None:
    first = members[0]
    union = any(m.src is not None and m.src.layout.mesh != mesh.name for m in members)
    for meeting in members[1:]:
        if meeting.dst != first.dst or (not union and meeting.src != first.src):
            kind = _mixed(first, meeting)
            raise _wrong(
                kind, f"{name_of(first.role, first.step)} brings together what does not belong together", meeting,
                f"{meeting.src} -> {meeting.dst}", f"others: {first.src} -> {first.dst}",
            )  # fmt: skip
    if union:
        check_union(scope, members, regions)


def _mixed(first: Meeting, other: Meeting) -> FaultKind:
    if first.src is None or other.src is None or first.src.tensor != other.src.tensor:
        return "wrong tensor"
    return "mixed partials" if first.src.layout == other.src.layout else "wrong layout"


def _check_transfer(scope: Scope, members: list[Meeting], regions: Regions, judged: set[tuple[int, int, bool]]) -> None:
    """``judged``: routes that were found right for a role, with or without pieces of its own."""
    first = members[0].step
    assert not isinstance(first, Collective)
    route: Route = scope.entry.routes[first.route]
    sent: tuple[Terms, int] | None = None
    for meeting in members:
        if meeting.src is None:
            continue
        brought = (meeting.src.terms, meeting.src.origin)
        if sent is not None and sent != brought:
            raise _wrong(
                "mixed partials",
                f"{name_of(meeting.role, meeting.step)} carries terms of different splits",
                meeting,
            )
        sent = brought
    for meeting in members:
        if isinstance(meeting.step, Recv):
            if meeting.dst is not None and sent is not None and meeting.dst.terms != sent[0]:
                raise _wrong(
                    "not a term", f"{name_of(meeting.role, meeting.step)} brings other terms of the sum", meeting
                )
            key = (meeting.step.route, meeting.role.index, meeting.src is None)
            if key not in judged:
                judged.add(key)
                check_route(scope, route, meeting, regions)
