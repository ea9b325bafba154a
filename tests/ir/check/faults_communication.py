"""Faults of communication: dropped, duplicated, swapped, mis-grouped, sent astray."""

from __future__ import annotations

import random
from itertools import pairwise

from editing import (
    Spot,
    inputs_of,
    put,
    renamed,
    replace,
    spots,
    timeless,
    with_entry,
    with_order,
    with_program,
    with_step,
)
from faults import injects

from superscaler.ir.layout import Partial, Space
from superscaler.ir.plan import Plan
from superscaler.ir.program import Collective, Grouping, Piece, Program, Recv, Route, Send, Step

LOST = ("missing communication", "missing value", "missing result", "reduction too early", "no buffer")
ASTRAY = ("wrong piece", "wrong rank", "missing communication", "mixed partials")


def real(plan: Plan, step: Collective) -> bool:
    """Whether a collective has more than one member."""
    return any(plan.space.axis(axis).ways > 1 for axis in step.axes)


def collectives(plan: Plan, *kinds: str) -> list[Spot]:
    found = [spot for spot in spots(plan, Collective) if real(plan, spot.step(plan))]
    return [spot for spot in found if not kinds or spot.step(plan).kind in kinds]


def moving(plan: Plan, entry: str, route: int) -> list[int]:
    """The pieces of a route that really go from one worker to another."""
    pieces = plan.entries[entry].routes[route].pieces
    return [i for i, piece in enumerate(pieces) if piece.source != piece.destination]


def ends(plan: Plan, *kinds: type[Step]) -> list[Spot]:
    """Sends and receives by which something really leaves, or reaches, a worker of the role."""
    found: list[Spot] = []
    for spot in spots(plan, *kinds):
        step, workers = spot.step(plan), spot.program(plan).workers
        pieces = plan.entries[spot.entry].routes[step.route].pieces
        moved = [p for p in pieces if p.source != p.destination]
        if any((p.source if isinstance(step, Send) else p.destination) in workers for p in moved):
            found.append(spot)
    return found


def used_routes(plan: Plan) -> list[tuple[str, int]]:
    found = {(spot.entry, spot.step(plan).route) for spot in spots(plan, Send)}
    return sorted(key for key in found if moving(plan, *key))


# --- dropped and duplicated -------------------------------------------------------------------------------------------


@injects("dropped send", "dropped communication", *LOST)
def dropped_send(plan: Plan, rng: random.Random) -> Plan | None:
    found = ends(plan, Send)
    return with_step(plan, rng.choice(found)) if found else None


@injects("dropped receive", "dropped communication", *LOST)
def dropped_recv(plan: Plan, rng: random.Random) -> Plan | None:
    found = ends(plan, Recv)
    return with_step(plan, rng.choice(found)) if found else None


@injects("dropped collective", "dropped communication", *LOST)
def dropped_collective(plan: Plan, rng: random.Random) -> Plan | None:
    found = collectives(plan)
    return with_step(plan, rng.choice(found)) if found else None


@injects("dropped transfer of one micro-batch", "dropped communication", *LOST)
def dropped_item(plan: Plan, rng: random.Random) -> Plan | None:
    found = ends(plan, Send, Recv)
    if not found:
        return None
    spot = rng.choice(found)
    items = [i for i, item in enumerate(spot.program(plan).order) if item.block == spot.block]
    gone = rng.choice(items)
    return with_order(plan, spot.entry, spot.role, lambda order: order.pop(gone) and None)


@injects("duplicated communication", "duplicated communication", "duplicated communication", "written twice")
def duplicated(plan: Plan, rng: random.Random) -> Plan | None:
    found = ends(plan, Send, Recv)
    found += [spot for pair in shared(plan) for spot in pair]
    if not found:
        return None
    spot = rng.choice(found)
    return with_step(plan, spot, spot.step(plan), spot.step(plan))


@injects("duplicated post of one micro-batch", "duplicated communication", "duplicated communication", "written twice")
def duplicated_item(plan: Plan, rng: random.Random) -> Plan | None:
    found = ends(plan, Send, Recv)
    if not found:
        return None
    spot = rng.choice(found)
    items = [i for i, item in enumerate(spot.program(plan).order) if item.block == spot.block]
    again = rng.choice(items)

    def insert(order: list) -> None:  # type: ignore[type-arg]
        order.insert(again, replace(order[again], frees=-1))

    return with_order(plan, spot.entry, spot.role, insert)


# --- missing or wrong collectives -------------------------------------------------------------------------------------


def bypassed(plan: Plan, spot: Spot) -> Plan | None:
    """Without the collective, its readers taking what it would have changed."""
    step: Collective = spot.step(plan)
    program = spot.program(plan)
    readers = [
        (b, i)
        for b, block in enumerate(program.blocks)
        for i, other in enumerate(block.steps)
        if step.dst in inputs_of(other) and (b, i) != (spot.block, spot.index)
    ]
    if not readers and step.dst not in {*program.outputs.values(), *program.gradients.values()}:
        return None
    for b, i in readers:
        other = Spot(spot.entry, spot.role, b, i)
        plan = with_step(plan, other, renamed(other.step(plan), step.dst, step.src))
    for table in ("outputs", "gradients"):
        named = getattr(program, table)
        changed = {name: step.src if value == step.dst else value for name, value in named.items()}
        plan = with_program(plan, spot.entry, spot.role, **{table: changed})
    return with_step(plan, spot)


BYPASSED = ("partial read as complete", "wrong layout", "wrong result", "wrong commit", "no buffer",
            "missing communication", "mixed partials", "wrong kind of partial")  # fmt: skip


@injects("missing all-reduce", "missing collective", *BYPASSED, bug=1)
def missing_all_reduce(plan: Plan, rng: random.Random) -> Plan | None:
    found = [s for s in collectives(plan, "all_reduce", "reduce_scatter") if s.program(plan).blocks[s.block].over]
    return bypassed(plan, rng.choice(found)) if found else None


@injects("gradient not reduced", "missing collective", *BYPASSED, bug=2)
def gradient_not_reduced(plan: Plan, rng: random.Random) -> Plan | None:
    found = []
    for spot in collectives(plan, "all_reduce", "reduce_scatter"):
        program = spot.program(plan)
        tensor = program.values[spot.step(plan).src].tensor
        if tensor in plan.entries[spot.entry].graph.gradients.values():
            found.append(spot)
    return bypassed(plan, rng.choice(found)) if found else None


@injects("missing gather", "missing collective", "missing result", *BYPASSED)
def missing_gather(plan: Plan, rng: random.Random) -> Plan | None:
    found = collectives(plan, "all_gather", "all_to_all")
    return bypassed(plan, rng.choice(found)) if found else None


@injects(
    "wrong collective", "wrong collective", "wrong layout", "partial read as complete", "complete read as partial",
    "wrong region", "mismatched communication", "wrong kind of partial", bug=4,
)  # fmt: skip
def wrong_collective(plan: Plan, rng: random.Random) -> Plan | None:
    found = collectives(plan)
    if not found:
        return None
    spot = rng.choice(found)
    step: Collective = spot.step(plan)
    others = [kind for kind in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all") if kind != step.kind]
    return with_step(plan, spot, replace(step, kind=rng.choice(others)))


@injects(
    "wrong axis", "wrong group", "wrong layout", "partial read as complete", "complete read as partial", "wrong group",
    "mismatched communication", "wrong region", bug=5,
)  # fmt: skip
def wrong_axis(plan: Plan, rng: random.Random) -> Plan | None:
    """The collective runs along another axis of the mesh, in that axis's groups."""
    found = []
    for spot in collectives(plan):
        step: Collective = spot.step(plan)
        mesh = plan.space.mesh(spot.program(plan).values[step.src].layout.mesh)
        others = [a for a in mesh.axes if a not in step.axes and plan.space.axis(a).ways > 1]
        if others:
            found.append((spot, others))
    if not found:
        return None
    spot, others = rng.choice(found)
    step = spot.step(plan)
    axis = rng.choice(others)
    groupings = plan.entries[spot.entry].groupings
    lines = plan.space.mesh(spot.program(plan).values[step.src].layout.mesh).lines((axis,))
    plan = with_entry(plan, spot.entry, groupings=(*groupings, Grouping(lines)))
    return with_step(plan, spot, replace(step, axes=(axis,), grouping=len(groupings)))


# --- groups -----------------------------------------------------------------------------------------------------------


def used_groupings(plan: Plan, *kinds: str, sharded: bool = False) -> list[tuple[str, int]]:
    """Groupings of collectives. ``sharded``: of one whose groups hold different parts, so that it matters who is in
    which."""

    def differs(spot: Spot) -> bool:
        step: Collective = spot.step(plan)
        states = spot.program(plan).values[step.src].layout.states
        return any(a not in step.axes and plan.space.axis(a).kind == "space" for a, _ in states)

    found = [s for s in collectives(plan, *kinds) if not sharded or differs(s)]
    return sorted({(s.entry, s.step(plan).grouping) for s in found})


@injects("mis-grouped", "mis-grouped communication", "wrong group", bug=6)
def mis_grouped(plan: Plan, rng: random.Random) -> Plan | None:
    """Two workers of different groups change places."""
    found = [(e, g) for e, g in used_groupings(plan, sharded=True) if len(plan.entries[e].groupings[g].groups) > 1]
    if not found:
        return None
    entry, number = rng.choice(found)
    groups = [list(group) for group in plan.entries[entry].groupings[number].groups]
    one, other = rng.sample(range(len(groups)), 2)
    i, j = rng.randrange(len(groups[one])), rng.randrange(len(groups[other]))
    groups[one][i], groups[other][j] = groups[other][j], groups[one][i]
    return _with_groups(plan, entry, number, groups)


@injects("member left out", "mis-grouped communication", "wrong group", "missing communication")
def member_left_out(plan: Plan, rng: random.Random) -> Plan | None:
    found = used_groupings(plan)
    if not found:
        return None
    entry, number = rng.choice(found)
    groups = [list(group) for group in plan.entries[entry].groupings[number].groups]
    group = rng.choice(groups)
    group.pop(rng.randrange(len(group)))
    return _with_groups(plan, entry, number, groups)


@injects("all in one group", "mis-grouped communication", "wrong group")
def all_in_one_group(plan: Plan, rng: random.Random) -> Plan | None:
    used = used_groupings(plan, "all_reduce", "reduce_scatter")
    found = [(e, g) for e, g in used if len(plan.entries[e].groupings[g].groups) > 1]
    if not found:
        return None
    entry, number = rng.choice(found)
    groups = plan.entries[entry].groupings[number].groups
    return _with_groups(plan, entry, number, [[w for group in groups for w in group]])


def _with_groups(plan: Plan, entry: str, number: int, groups: list[list[int]]) -> Plan:
    changed = Grouping(tuple(tuple(group) for group in groups))
    return with_entry(plan, entry, groupings=put(plan.entries[entry].groupings, number, changed))


# --- pieces -----------------------------------------------------------------------------------------------------------


def with_piece(plan: Plan, entry: str, route: int, index: int, *instead: Piece) -> Plan:
    path: Route = plan.entries[entry].routes[route]
    pieces = (*path.pieces[:index], *instead, *path.pieces[index + 1 :])
    return with_entry(plan, entry, routes=put(plan.entries[entry].routes, route, replace(path, pieces=pieces)))


def some_piece(plan: Plan, rng: random.Random) -> tuple[str, int, int, Piece] | None:
    found = used_routes(plan)
    if not found:
        return None
    entry, route = rng.choice(found)
    index = rng.choice(moving(plan, entry, route))
    return entry, route, index, plan.entries[entry].routes[route].pieces[index]


@injects("piece left out", "wrong region", *ASTRAY)
def piece_left_out(plan: Plan, rng: random.Random) -> Plan | None:
    found = some_piece(plan, rng)
    return None if found is None else with_piece(plan, *found[:3])


@injects("piece twice", "wrong region", *ASTRAY)
def piece_twice(plan: Plan, rng: random.Random) -> Plan | None:
    found = some_piece(plan, rng)
    return None if found is None else with_piece(plan, *found[:3], found[3], found[3])


@injects("piece shifted", "wrong region", *ASTRAY)
def piece_shifted(plan: Plan, rng: random.Random) -> Plan | None:
    """One interval of a piece begins one element late."""
    found = some_piece(plan, rng)
    if found is None or not any(found[3].region):
        return None
    entry, route, index, piece = found
    dim = rng.choice([d for d, span in enumerate(piece.region) if span])
    start, stop = piece.region[dim][0]
    span = ((start + 1, stop),) if stop - start > 1 else ((start + 1, stop + 1),)
    region = put(piece.region, dim, (*span, *piece.region[dim][1:]))
    return with_piece(plan, entry, route, index, replace(piece, region=region))


def holds(space: Space, route: Route, worker: int, piece: Piece) -> bool:
    """Whether a worker's part of a route's source is that of the piece's own sender."""
    mesh = space.mesh(route.source.mesh)
    if worker not in mesh.devices:
        return False
    sharded = [axis for axis, state in route.source.states if not isinstance(state, Partial) and axis in mesh.axes]
    return all(mesh.coords(worker)[a] == mesh.coords(piece.source)[a] for a in sharded)


@injects("wrong rank of a piece", "wrong stage", *ASTRAY, bug=7)
def wrong_rank(plan: Plan, rng: random.Random) -> Plan | None:
    """A piece comes from a worker that does not hold it."""
    found = some_piece(plan, rng)
    if found is None:
        return None
    entry, route, index, piece = found
    path = plan.entries[entry].routes[route]
    others = [w for w in range(plan.workers) if not holds(plan.space, path, w, piece)]
    return with_piece(plan, entry, route, index, replace(piece, source=rng.choice(others))) if others else None


@injects("piece to another worker", "wrong stage", *ASTRAY)
def wrong_destination(plan: Plan, rng: random.Random) -> Plan | None:
    found = some_piece(plan, rng)
    if found is None or plan.workers < 3:
        return None
    entry, route, index, piece = found
    others = [w for w in range(plan.workers) if w != piece.destination]
    return with_piece(plan, entry, route, index, replace(piece, destination=rng.choice(others)))


# --- numbers and order ------------------------------------------------------------------------------------------------


def shared(plan: Plan) -> list[tuple[Spot, Spot]]:
    """Two communication steps of one role, in both of which one other role takes part as well."""
    roles: dict[tuple[str, int], set[int]] = {}
    found = list(spots(plan, Collective, Send, Recv))
    for spot in found:
        roles.setdefault((spot.entry, spot.step(plan).comm), set()).add(spot.role)
    mixed = [spot for spot in found if len(roles[spot.entry, spot.step(plan).comm]) > 1]
    pairs = [(a, b) for a in mixed for b in mixed if a < b and (a.entry, a.role) == (b.entry, b.role)]

    def common(a: Spot, b: Spot) -> set[int]:
        return roles[a.entry, a.step(plan).comm] & roles[b.entry, b.step(plan).comm] - {a.role}

    return [(a, b) for a, b in pairs if common(a, b) and a.step(plan).comm != b.step(plan).comm]


@injects(
    "swapped numbers", "swapped communication", "mismatched communication", "missing communication", "wrong layout",
    "wrong tensor",
)  # fmt: skip
def swapped_numbers(plan: Plan, rng: random.Random) -> Plan | None:
    """In one role, two communications have each other's number."""
    found = shared(plan)
    if not found:
        return None
    one, other = rng.choice(found)
    first, second = one.step(plan), other.step(plan)
    plan = with_step(plan, one, replace(first, comm=second.comm))
    return with_step(plan, other, replace(second, comm=first.comm))


def posts(program: Program) -> list[tuple[int, int, int]]:
    """(place in the order, number, micro-batch) of the tasks that only send or receive."""
    found = []
    for i, item in enumerate(program.order):
        steps = program.blocks[item.block].steps
        if len(steps) == 1 and isinstance(steps[0], Send | Recv):
            found.append((i, steps[0].comm, item.microbatch))
    return found


@injects("cyclic order", "cyclic order across workers", "deadlock", "missing value", "no buffer")
def cyclic_order(plan: Plan, rng: random.Random) -> Plan | None:
    """One role posts two transfers in the other order than the role at their other end."""
    found = []
    for name, entry in plan.entries.items():
        queues = [posts(program) for program in entry.programs]
        for role, queue in enumerate(queues):
            for (i, a, j), (k, b, m) in pairwise(queue):
                ends = [r for r, other in enumerate(queues) if r != role and {(a, j), (b, m)} <= {q[1:] for q in other}]
                if ends and (a, j) != (b, m):
                    found.append((name, role, i, k))
    if not found:
        return None
    name, role, i, k = rng.choice(found)

    def swap(order: list) -> None:  # type: ignore[type-arg]
        one, other = order[i], order[k]
        order[i], order[k] = replace(other, frees=-1), replace(one, frees=-1)

    return with_order(timeless(plan), name, role, swap)
