"""Every collective and route brings each worker exactly its region, however uneven the parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import small_plans as plans
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.ir.graph import Graph, Tensor
from superscaler.ir.layout import Axis, Layout, Mesh, Partial, PartialKind, Shard, Space
from superscaler.ir.plan import Entry, Plan
from superscaler.ir.program import Collective, Grouping, Program, Recv, Send, Value
from superscaler.ir.region import Region
from superscaler.runtime import transfer
from superscaler.runtime.binding import Binding
from superscaler.runtime.comm import Handle
from superscaler.runtime.inline import Exchange, InlineComm, drive
from superscaler.runtime.packing import packing
from superscaler.transforms.reshard import Move, moves, route

X = "x"


def bindings(space: Space, shape: tuple[int, ...], layouts: list[Layout], **tables: Any) -> dict[int, Binding]:
    """One Program for all workers, with a value of ``x`` per layout."""
    workers = sorted({d for mesh in space.meshes for d in mesh.devices})
    graph = Graph((Tensor(X, shape, "float64"),), (), (), {})
    values = tuple(Value(X, layout) for layout in layouts)
    program = Program(tuple(workers), values, (), (), (), {}, {}, {}, {})
    groupings, routes = tables.get("groupings", ()), tables.get("routes", ())
    entry = Entry(graph, (), (program,), tuple(groupings), tuple(routes), plans.CERTIFICATE)
    plan = plans.plan_of(graph, space, [program], [], len(workers), {})
    plan = Plan({"train": entry}, space, (), plan.cluster, len(workers))
    return {w: Binding(plan, entry, program, w) for w in workers}


@st.composite
def layouts(draw: st.DrawFn, space: Space, mesh: str, shape: tuple[int, ...], *, partial: bool) -> Layout:
    states: dict[str, Any] = {}
    for name in space.mesh(mesh).axes:
        kind = draw(st.sampled_from(["whole", "shard", *(["partial"] if partial else [])]))
        if kind == "shard":
            dim = draw(st.integers(0, len(shape) - 1))
            inner = draw(st.sampled_from([i for i in (1, 2, 3) if shape[dim] % i == 0]))
            states[name] = Shard(dim, shape[dim] // inner, inner)
        elif kind == "partial":
            states[name] = Partial()
    return space.layout(mesh, states)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Space, tuple[int, ...], Layout, Layout]:
    ways = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    names = ("a", "b")[: len(ways)]
    shape = tuple(draw(st.lists(st.integers(3, 7), min_size=1, max_size=2)))
    count = torch.Size(ways).numel()
    axes = tuple(Axis(n, w, "space") for n, w in zip(names, ways, strict=True))
    space = Space(axes, (Mesh("m", names, ways, tuple(range(count))),))
    have = draw(layouts(space, "m", shape, partial=True))
    need = draw(layouts(space, "m", shape, partial=False))
    return space, shape, have, need


def numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randint(-50, 50, shape, generator=torch.Generator().manual_seed(seed)).double()


def pieces(space: Space, shape: tuple[int, ...], layout: Layout, whole: torch.Tensor) -> dict[int, torch.Tensor]:
    """Per device of the mesh: its part; along partial axes, terms whose sum is the whole."""
    mesh = space.mesh(layout.mesh)
    found: dict[int, torch.Tensor] = {}
    for device in mesh.devices:
        coords = mesh.coords(device)
        region = space.region(shape, layout, coords)
        part = packing(Region.full(shape), region).take(whole).clone()
        for axis in layout.partial:
            ways, i = space.axis(axis).ways, coords[axis]
            noise = numbers(tuple(part.shape), 17 + i)
            # The last term makes up for the others, so that the sum over the axis is what it was.
            part = noise if i < ways - 1 else part - sum(numbers(tuple(part.shape), 17 + k) for k in range(ways - 1))
        found[device] = part
    return found


def carry_out(
    space: Space, shape: tuple[int, ...], have: Layout, steps: list[Move], parts: dict[int, torch.Tensor]
) -> None:
    """Run the moves on all workers; ``parts`` becomes the last layout's."""
    chain = [have, *(move.layout for move in steps)]
    groupings = [Grouping(space.mesh("m").lines(move.axes)) for move in steps]
    bound = bindings(space, shape, chain, groupings=groupings)
    exchange = Exchange()

    def run(worker: int) -> Iterator[Handle]:
        binding, comm = bound[worker], InlineComm(exchange, worker)
        for i, move in enumerate(steps):
            if move.kind == "slice":
                pack = packing(binding.local(i, {}), binding.local(i + 1, {}))
                parts[worker] = pack.take(parts[worker]).contiguous()
                continue
            step = Collective(move.kind, i, i + 1, move.axes, i, i)
            run = transfer.collective(binding, comm, step, {}, (i, 0))
            parts[worker] = yield from run(parts[worker], None)

    drive({w: run(w) for w in bound})
    assert not exchange.mail
    assert not exchange.rounds


@given(worlds(), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_any_resharding(world: tuple[Space, tuple[int, ...], Layout, Layout], seed: int) -> None:
    space, shape, have, need = world
    if len(have.partial) > 1:
        return
    whole = numbers(shape, seed)
    parts = pieces(space, shape, have, whole)
    carry_out(space, shape, have, moves(space, shape, have, need), parts)
    for device, expected in pieces(space, shape, need, whole).items():
        assert torch.equal(parts[device], expected)


def reduced(kind: PartialKind, terms: list[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(terms)
    done = {"max": stacked.amax, "min": stacked.amin, "logsumexp": stacked.logsumexp}
    return done[kind](0)


def test_every_kind_of_partial_in_place_and_scattered() -> None:
    space = Space((Axis("a", 3, "space"),), (Mesh("m", ("a",), (3,), (0, 1, 2)),))
    terms = [numbers((7,), i) / 10 for i in range(3)]
    for term in terms:
        term[3] = float("-inf")  # nothing anywhere: logsumexp must not make it nan
    terms[1][4] = float("-inf")
    kinds: tuple[PartialKind, ...] = ("max", "min", "logsumexp")
    for kind in kinds:
        have = Layout("m", (("a", Partial(kind)),))
        for method, need in (("all_reduce", Layout("m")), ("reduce_scatter", Layout("m", (("a", Shard(0, 7)),)))):
            parts = dict(enumerate(t.clone() for t in terms))
            carry_out(space, (7,), have, [Move(method, ("a",), need)], parts)  # type: ignore[arg-type]
            for device in range(3):
                region = space.region((7,), need, {"a": device})
                expected = packing(Region.full((7,)), region).take(reduced(kind, terms))
                assert torch.allclose(parts[device], expected, rtol=1e-14)


@given(st.data(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_any_route_between_meshes(data: st.DataObject, seed: int) -> None:
    shape = tuple(data.draw(st.lists(st.integers(3, 7), min_size=1, max_size=2)))
    ways = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    shared = data.draw(st.integers(0, min(ways)))  # devices that belong to both
    one, two = tuple(range(ways[0])), tuple(range(ways[0] - shared, ways[0] - shared + ways[1]))
    axes = (Axis("a", ways[0], "space"), Axis("b", ways[1], "space"))
    space = Space(axes, (Mesh("m", ("a",), (ways[0],), one), Mesh("n", ("b",), (ways[1],), two)))
    have = data.draw(layouts(space, "m", shape, partial=False))
    need = data.draw(layouts(space, "n", shape, partial=False))
    path = route(space, X, shape, have, need)
    bound = bindings(space, shape, [have, need], routes=[path])
    whole = numbers(shape, seed)
    sources, exchange = pieces(space, shape, have, whole), Exchange()
    got: dict[int, torch.Tensor] = {}

    def run(worker: int) -> Iterator[Handle]:
        binding, comm = bound[worker], InlineComm(exchange, worker)
        if worker in one:
            yield from transfer.send(binding, comm, Send(0, 0, 0), {}, (0, 0))(sources[worker])
        if worker in two:
            local = 0 if worker in one else -1
            receive = transfer.recv(binding, comm, Recv(1, 0, 0, local), {}, (0, 0))
            got[worker] = yield from receive(sources.get(worker), None, torch.device("cpu"))

    drive({w: run(w) for w in bound})
    assert not exchange.mail
    for device, expected in pieces(space, shape, need, whole).items():
        assert torch.equal(got[device], expected)
