"""Matching: every communication is posted by all of its members, once per micro-batch, and by nobody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from superscaler.ir.check.fault import Place, fault, workers_text
from superscaler.ir.check.scope import Role, Scope
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
    """Raises a :class:`Fault` for what hangs or gets mixed up; how many communications there are is returned."""
    runs = {role.index: Counter((i.block, i.microbatch) for i in role.program.order) for role in scope.roles}
    often = {role.index: _microbatches(runs[role.index]) for role in scope.roles}
    members = _Members(scope)
    total = 0
    for parts in parts_of(scope).values():
        _check_kind(parts)
        _check_once(parts)
        _check_instances(parts, runs, often)
        members.check(parts)
        total += len(often[parts[0][0].index][parts[0][1]])
    return total


def _microbatches(runs: Counter[tuple[int, int]]) -> dict[int, frozenset[int]]:
    found: dict[int, set[int]] = {}
    for block, microbatch in runs:
        found.setdefault(block, set()).add(microbatch)
    return {block: frozenset(js) for block, js in found.items()}


def name_of(role: Role, step: Collective | Send | Recv) -> str:
    """A communication in words."""
    if isinstance(step, Collective):
        return f"communication {step.comm} ({step.kind} of tensor {role.program.values[step.src].tensor!r})"
    return f"communication {step.comm} (transfer of tensor {role.scope.entry.routes[step.route].tensor!r})"


def _at(part: Part, microbatch: int | None = None) -> Place:
    role, block, step = part
    return role.place(block, microbatch, step)


def _check_kind(members: list[Part]) -> None:
    """All post the same thing."""
    first = members[0]
    for part in members[1:]:
        if _identity(first[2]) != _identity(part[2]):
            raise fault(
                "mismatched communication", f"{name_of(first[0], first[2])} is posted as different things",
                _at(first), f"and at {_at(part)}", right="one number per communication",
            )  # fmt: skip
        ours, theirs = (p[0].program.blocks[p[1]].over for p in (first, part))
        if ours != theirs:
            raise fault(
                "mismatched communication",
                f"{name_of(first[0], first[2])} is posted per micro-batch and per step",
                _at(part),
            )


def _identity(step: Collective | Send | Recv) -> tuple[object, ...]:
    if isinstance(step, Collective):
        return (step.kind, step.axes, step.grouping, step.at)
    return ("transfer", step.route, step.at)


def _check_once(members: list[Part]) -> None:
    seen: dict[tuple[int, type[Step]], Part] = {}
    for part in members:
        key = (part[0].index, type(part[2]))
        if key in seen:
            raise fault(
                "duplicated communication",
                f"{name_of(part[0], part[2])} is posted twice",
                _at(seen[key]),
                f"and at {_at(part)}",
            )
        seen[key] = part


def _check_instances(
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
                "missing communication", f"{name_of(role, step)} is not posted for micro-batch {gap}",
                _at(lacking), f"while {workers_text(other[0].workers)} wait in it for ever",
                right="each member posts it once per micro-batch",
            )  # fmt: skip
        twice = next((j for j in have if runs[role.index][block, j] > 1), None)
        if twice is not None:
            raise fault("duplicated communication", f"{name_of(role, step)} is posted twice", _at(part, twice))


class _Members:
    """Judges who takes part; sets of workers are compared once per grouping or route and roles."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._right: set[tuple[object, ...]] = set()

    def check(self, parts: list[Part]) -> None:
        step = parts[0][2]
        what = ("group", step.grouping) if isinstance(step, Collective) else ("route", step.route)
        key = (*what, *((role.index, type(other)) for role, _, other in parts))
        if key in self._right:
            return
        if isinstance(step, Collective):
            self._collective(parts, step)
        else:
            self._transfer(parts, self.scope.entry.routes[step.route])
        self._right.add(key)

    def _collective(self, parts: list[Part], step: Collective) -> None:
        inside = {worker for group in self.scope.entry.groupings[step.grouping].groups for worker in group}
        for part in parts:
            outside = set(part[0].workers) - inside
            if outside:
                raise fault(
                    "wrong group", f"worker {min(outside)} is in no group of {name_of(part[0], part[2])}",
                    _at(part), right=f"grouping {step.grouping} with that worker in it",
                )  # fmt: skip
        _all_post(parts[0], inside, [part[0] for part in parts], "is in one of its groups")

    def _transfer(self, parts: list[Part], route: Route) -> None:
        sends = [part[0] for part in parts if isinstance(part[2], Send)]
        recvs = [part[0] for part in parts if isinstance(part[2], Recv)]
        moving = [piece for piece in route.pieces if piece.source != piece.destination]
        _all_post(parts[0], {p.source for p in moving}, sends, "has a piece to send")
        _all_post(parts[0], {p.destination for p in moving}, recvs, "has a piece to receive")


def _all_post(first: Part, needed: Iterable[int], roles: Sequence[Role], why: str) -> None:
    posting = {w for role in roles for w in role.workers}
    lacking = sorted(set(needed) - posting)
    if lacking:
        raise fault(
            "missing communication", f"{name_of(first[0], first[2])} is never posted by worker {lacking[0]}",
            _at(first), f"the worker {why}", right="a post by each of its members",
        )  # fmt: skip
