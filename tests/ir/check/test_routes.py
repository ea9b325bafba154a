"""Transfers between meshes: just those are right that give every receiver each of its elements once, from a holder."""

from __future__ import annotations

from itertools import product

from editing import replace, with_entry
from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.check import Fault, check
from superscaler.ir.layout import Axis, Layout, Mesh, Shard, Space
from superscaler.ir.plan import Plan
from superscaler.ir.program import Definition, Piece, Recv, Route, Send
from superscaler.ir.region import Interval
from superscaler.transforms.reshard import route
from tests.ir.plans_by_hand import Role, graph_of, plan_of

SHAPE = (6, 5)
DIGITS = (None, Shard(0, 6), Shard(0, 2, 3), Shard(0, 3), Shard(1, 5))


@st.composite
def transfers(draw: st.DrawFn) -> Plan:
    """``x`` lies on workers 0 to 3 and is brought to workers 4 to 7, in any layouts; it is the result there."""
    meshes = tuple(Mesh(n, ("a", "b"), (2, 2), tuple(range(4 * i, 4 * i + 4))) for i, n in enumerate(("m", "n")))
    space = Space((Axis("a", 2, "space"), Axis("b", 2, "space")), meshes)
    layouts = [space.layout(n, {a: draw(st.sampled_from(DIGITS)) for a in "ab"}) for n in ("m", "n")]
    graph = graph_of("", {"x": SHAPE}, ("x",), outputs={"x": "x"})
    definitions: list[Definition] = []
    sender, receiver = (Role(graph, space, mesh.devices, definitions) for mesh in meshes)
    mine, theirs = (
        sender.value("x", "m", **dict(layouts[0].states)),
        receiver.value("x", "n", **dict(layouts[1].states)),
    )
    sender.run(sender.block("send", Send(mine, 0, 0), mesh="m", lane="comm"))
    receiver.run(receiver.block("recv", Recv(theirs, 0, 0), mesh="n", lane="comm"))
    programs = (sender.program(inputs={"x": mine}), receiver.program(outputs={"x": theirs}))
    path = route(space, "x", SHAPE, *layouts)
    return plan_of(graph, space, programs, definitions, {}, routes=(path,), name="eval")


Element = tuple[int, ...]


def elements(region: tuple[tuple[Interval, ...], ...]) -> list[Element]:
    return list(product(*([i for start, stop in span for i in range(start, stop)] for span in region)))


def held(plan: Plan, layout: Layout, worker: int) -> set[Element]:
    coords = plan.space.mesh(layout.mesh).coords(worker)
    return set(elements(tuple(tuple(span) for span in plan.space.region(SHAPE, layout, coords))))


def gives_each_element_once(plan: Plan, path: Route) -> bool:
    for piece in path.pieces:
        if not set(elements(piece.region)) <= held(plan, path.source, piece.source):
            return False
    for worker in plan.space.mesh(path.destination.mesh).devices:
        arrived = [e for piece in path.pieces if piece.destination == worker for e in elements(piece.region)]
        if sorted(arrived) != sorted(held(plan, path.destination, worker)):
            return False
    return True


def passes(plan: Plan) -> bool:
    try:
        check(plan)
    except Fault:
        return False
    return True


@given(transfers())
def test_compiled_routes_are_right(plan: Plan) -> None:
    assert gives_each_element_once(plan, plan.entries["eval"].routes[0])
    check(plan)


@given(transfers(), st.data())
def test_the_check_passes_just_what_is_right(plan: Plan, data: st.DataObject) -> None:
    """A piece is changed in some way; going over elements one by one decides whether the route is still right."""
    path = plan.entries["eval"].routes[0]
    number = data.draw(st.integers(0, len(path.pieces) - 1))
    piece = path.pieces[number]
    pieces = list(path.pieces)
    match data.draw(st.sampled_from(("source", "destination", "region", "dropped", "doubled", "split"))):
        case "source":
            pieces[number] = replace(piece, source=data.draw(st.integers(0, 3)))
        case "destination":
            pieces[number] = replace(piece, destination=data.draw(st.integers(4, 7)))
        case "region":
            start = data.draw(st.integers(0, 5))
            stop = data.draw(st.integers(start + 1, 6))
            pieces[number] = replace(piece, region=(((start, stop),), piece.region[1]))
        case "dropped":
            del pieces[number]
        case "doubled":
            pieces.append(piece)
        case _:
            pieces[number : number + 1] = _halves(piece)
    changed = replace(path, pieces=tuple(pieces))
    assert passes(with_entry(plan, "eval", routes=(changed,))) == gives_each_element_once(plan, changed)


def _halves(piece: Piece) -> list[Piece]:
    """The piece as two, cut in its first interval."""
    (start, stop), *rest = piece.region[0]
    if stop - start < 2:
        return [piece]
    first = replace(piece, region=(((start, start + 1),), piece.region[1]))
    return [first, replace(piece, region=(((start + 1, stop), *rest), piece.region[1]))]
