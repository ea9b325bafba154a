"""Communications: all who take part post the same one, once per micro-batch, and bring what belongs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from superscaler.ir.check.bodies import Meeting
from superscaler.ir.check.fault import Fault, FaultKind, Place, fault, workers_text
from superscaler.ir.check.regions import Regions
from superscaler.ir.check.routes import check_route
from superscaler.ir.check.scope import Role, Scope, Terms
from superscaler.ir.check.unions import check_union
from superscaler.ir.program import Collective, Recv, Route, Send, Step

Part = tuple[Role, int, Collective | Send | Recv]  # a role's step that takes part, and its block


def parts_of(scope: Scope) -> dict[int, list[Part]]:
    """Communication number -> the steps that post it."""
    found: dict[int, list[Part]] = {}
    for role in scope.roles:
        run = {item.block for item in role.program.order}
        for number in sorted(run):
            for step in role.program.blocks[number].steps:
                if isinstance(step, Collective | Send | Recv):
                    found.setdefault(step.comm, []).append((role, number, step))
    return found


def check_matching(scope: Scope) -> int:
    """Every communication is posted once by each of its members and by nobody else; their number is returned."""
    runs = {role.index: Counter((i.block, i.microbatch) for i in role.program.order) for role in scope.roles}
    often = {role.index: _microbatches(runs[role.index]) for role in scope.roles}
    total = 0
    parts = parts_of(scope)
    for comm, members in parts.items():
        _check_kind(comm, members)
        _check_once(comm, members)
        _check_instances(comm, members, runs, often)
        _check_members(scope, comm, members)
        total += len(often[members[0][0].index][members[0][1]])
    return total


def _microbatches(runs: Counter[tuple[int, int]]) -> dict[int, frozenset[int]]:
    found: dict[int, set[int]] = {}
    for block, microbatch in runs:
        found.setdefault(block, set()).add(microbatch)
    return {block: frozenset(js) for block, js in found.items()}


def _name(comm: int, step: Step) -> str:
    kind = step.kind if isinstance(step, Collective) else "transfer"
    return f"communication {comm} ({kind})"


def _at(part: Part, microbatch: int | None = None) -> Place:
    role, block, step = part
    return role.place(block, microbatch, step)


def _check_kind(comm: int, members: list[Part]) -> None:
    """All post the same thing."""
    first = members[0]
    for part in members[1:]:
        if _identity(first[2]) != _identity(part[2]):
            raise fault(
                "mismatched communication", f"{_name(comm, first[2])} is posted as different things",
                _at(first), f"and at {_at(part)}", right="one number per communication",
            )  # fmt: skip
        ours, theirs = (p[0].program.blocks[p[1]].over for p in (first, part))
        if ours != theirs:
            raise fault(
                "mismatched communication", f"{_name(comm, first[2])} is posted per micro-batch and per step", _at(part)
            )


def _identity(step: Collective | Send | Recv) -> tuple[object, ...]:
    if isinstance(step, Collective):
        return (step.kind, step.axes, step.grouping, step.at)
    return ("transfer", step.route, step.at)


def _check_once(comm: int, members: list[Part]) -> None:
    seen: dict[tuple[int, type[Step]], Part] = {}
    for part in members:
        key = (part[0].index, type(part[2]))
        if key in seen:
            raise fault(
                "duplicated communication",
                f"{_name(comm, part[2])} is posted twice",
                _at(seen[key]),
                f"and at {_at(part)}",
            )
        seen[key] = part


def _check_instances(
    comm: int,
    members: list[Part],
    runs: dict[int, Counter[tuple[int, int]]],
    often: dict[int, dict[int, frozenset[int]]],
) -> None:
    first = members[0]
    expected = often[first[0].index][first[1]]
    for part in members:
        role, block, step = part
        have = often[role.index][block]
        if have != expected:
            gap = min(have ^ expected)
            lacking, other = (part, first) if gap in expected else (first, part)
            raise fault(
                "missing communication", f"{_name(comm, step)} is not posted for micro-batch {gap}",
                _at(lacking), f"while {workers_text(other[0].workers)} wait in it for ever",
                right="each member posts it once per micro-batch",
            )  # fmt: skip
        twice = next((j for j in have if runs[role.index][block, j] > 1), None)
        if twice is not None:
            raise fault("duplicated communication", f"{_name(comm, step)} is posted twice", _at(part, twice))


def _check_members(scope: Scope, comm: int, members: list[Part]) -> None:
    first = members[0]
    if isinstance(first[2], Collective):
        grouping = scope.entry.groupings[first[2].grouping]
        inside = {w for group in grouping.groups for w in group}
        for part in members:
            outside = set(part[0].workers) - inside
            if outside:
                raise fault(
                    "wrong group", f"worker {min(outside)} posts {_name(comm, part[2])} but is in none of its groups",
                    _at(part), right=f"grouping {first[2].grouping} with that worker in it",
                )  # fmt: skip
        _all_post(comm, first, inside, [part[0] for part in members], "is in one of its groups")
        return
    route = scope.entry.routes[first[2].route]
    sends = [part[0] for part in members if isinstance(part[2], Send)]
    recvs = [part[0] for part in members if isinstance(part[2], Recv)]
    moving = [piece for piece in route.pieces if piece.source != piece.destination]
    _all_post(comm, first, {p.source for p in moving}, sends, "has a piece to send")
    _all_post(comm, first, {p.destination for p in moving}, recvs, "has a piece to receive")


def _all_post(comm: int, first: Part, needed: Iterable[int], roles: Sequence[Role], why: str) -> None:
    posting = {w for role in roles for w in role.workers}
    lacking = sorted(set(needed) - posting)
    if lacking:
        raise fault(
            "missing communication", f"{_name(comm, first[2])} is never posted by worker {lacking[0]}, which {why}",
            _at(first), right="a post by each of its members",
        )  # fmt: skip


# --- what the members bring -------------------------------------------------------------------------------------------


def check_meetings(scope: Scope, meetings: list[Meeting], regions: Regions) -> None:
    """What is brought together is the same tensor, cut in the same way, by the groups that its layout says."""
    together: dict[int, list[Meeting]] = {}
    judged: set[tuple[int, int, bool]] = set()
    for meeting in meetings:
        together.setdefault(meeting.step.comm, []).append(meeting)
    for comm, members in together.items():
        step = members[0].step
        if isinstance(step, Collective):
            _check_collective(scope, comm, step, members, regions)
        else:
            _check_transfer(scope, comm, scope.entry.routes[step.route], members, regions, judged)


def _wrong(kind: FaultKind, what: str, meeting: Meeting, *why: str, right: str | None = None) -> Fault:
    return fault(kind, what, meeting.role.place(meeting.block, None, meeting.step), *why, right=right)


def _check_collective(scope: Scope, comm: int, step: Collective, members: list[Meeting], regions: Regions) -> None:
    first = members[0]
    assert first.src is not None
    assert first.dst is not None
    mesh = scope.space.mesh(first.dst.layout.mesh)
    groups = scope.entry.groupings[step.grouping].groups
    if set(groups) != set(mesh.lines(step.axes)) or len(groups) != len(set(groups)):
        lines = mesh.lines(step.axes)
        odd = next((g for g in groups if g not in set(lines)), groups[0] if groups else ())
        raise _wrong(
            "wrong group", f"{_name(comm, step)} of tensor {first.src.tensor!r} runs in group {list(odd)[:16]}", first,
            right=f"the lines of mesh {mesh.name!r} along {list(step.axes)}, such as {list(lines[0])[:16]}",
        )  # fmt: skip
    union = any(m.src is not None and m.src.layout.mesh != mesh.name for m in members)
    for meeting in members[1:]:
        if meeting.dst != first.dst or (not union and meeting.src != first.src):
            kind = _mixed(first, meeting)
            raise _wrong(
                kind, f"{_name(comm, step)} brings together what does not belong together", meeting,
                f"{meeting.src} -> {meeting.dst}", f"others: {first.src} -> {first.dst}",
            )  # fmt: skip
    if union:
        check_union(scope, comm, members, regions)


def _mixed(first: Meeting, other: Meeting) -> FaultKind:
    if first.src is None or other.src is None or first.src.tensor != other.src.tensor:
        return "wrong tensor"
    return "mixed partials" if first.src.layout == other.src.layout else "wrong layout"


def _check_transfer(
    scope: Scope, comm: int, route: Route, members: list[Meeting], regions: Regions, judged: set[tuple[int, int, bool]]
) -> None:
    """``judged``: routes that were found right for a role, with or without pieces of its own."""
    sent: tuple[Terms, int] | None = None
    for meeting in members:
        if meeting.src is None:
            continue
        brought = (meeting.src.terms, meeting.src.origin)
        if sent is not None and sent != brought:
            raise _wrong("mixed partials", f"{_name(comm, meeting.step)} carries terms of different splits", meeting)
        sent = brought
    for meeting in members:
        if isinstance(meeting.step, Recv):
            if meeting.dst is not None and sent is not None and meeting.dst.terms != sent[0]:
                raise _wrong("not a term", f"{_name(comm, meeting.step)} brings other terms of the sum", meeting)
            key = (meeting.step.route, meeting.role.index, meeting.src is None)
            if key not in judged:
                judged.add(key)
                check_route(scope, route, meeting, regions)
