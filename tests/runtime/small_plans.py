"""Small plans, written by hand: a two-layer network in one piece, split over devices, and in two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph, Op, Tensor
from superscaler.ir.layout import Axis, Layout, Mesh, Partial, Shard, Space
from superscaler.ir.plan import Certificate, Entry, Plan, StateTensor
from superscaler.ir.program import (
    Accumulate,
    Block,
    Buffer,
    Call,
    Collective,
    Commit,
    Definition,
    Grouping,
    Item,
    Program,
    Recv,
    Route,
    Row,
    Send,
    Slice,
    Value,
)  # fmt: skip
from superscaler.ir.rules.rule import Split
from superscaler.runtime.binding import Binding
from superscaler.runtime.storage import places, users
from superscaler.transforms.reshard import route

B, I, H, O = 8, 4, 6, 5  # noqa: E741
F64 = "float64"
CERTIFICATE = Certificate("feasible", 0, 0, 0.0, 0, "", "", 0, 0.0)


def two_layers(slow: float | None = None) -> Graph:
    """loss = Σ relu(x w1 + b1) w2, its gradients, and SGD. ``slow``: milliseconds of sleep before the loss."""
    shapes: dict[str, tuple[int, ...]] = {
        "x": (B, I), "w1": (I, H), "b1": (H,), "w2": (H, O), "lr": (), "h0": (B, H), "h1": (B, H), "h2": (B, H),
        "y": (B, O), "loss": (), "gy": (B, O), "h2t": (H, B), "gw2": (H, O), "w2t": (O, H), "gh2": (B, H),
        "gh1": (B, H), "gb1": (H,), "xt": (I, B), "gw1": (I, H), "clip": (), "w1n": (I, H), "b1n": (H,), "w2n": (H, O),
    }  # fmt: skip
    kinds: dict[str, Any] = {
        **dict.fromkeys(("x", "lr"), "input"), **dict.fromkeys(("w1", "b1", "w2"), "parameter"),
    }  # fmt: skip
    ops: list[Op] = []

    def op(target: str, ins: str, outs: str, *args: Any) -> None:
        given = ins.split()
        refs = tuple(f"${i}" for i in range(len(given)))
        phase = "optimizer" if "sgd" in target else "forward"
        ops.append(Op(outs, target, tuple(given), tuple(outs.split()), (*refs, *args), phase))  # type: ignore[arg-type]

    op("aten.mm.default", "x w1", "h0")
    op("aten.add.Tensor", "h0 b1", "h1")
    op("aten.relu.default", "h1", "h2")
    op("aten.mm.default", "h2 w2", "y" if slow is None else "y0")
    if slow is not None:
        shapes["y0"] = (B, O)
        op("superscaler.sleep", "y0", "y", slow, 0.0)
    op("aten.sum.dim_IntList", "y", "loss", [0, 1])
    ops.append(Op("gy", "superscaler.full", (), ("gy",), ("#shape", 1.0, F64)))
    op("aten.permute.default", "h2", "h2t", [1, 0])
    op("aten.mm.default", "h2t gy", "gw2")
    op("aten.permute.default", "w2", "w2t", [1, 0])
    op("aten.mm.default", "gy w2t", "gh2")
    op("aten.threshold_backward.default", "gh2 h1", "gh1", 0)
    op("aten.sum.dim_IntList", "gh1", "gb1", [0])
    op("aten.permute.default", "x", "xt", [1, 0])
    op("aten.mm.default", "xt gh1", "gw1")
    ops.append(Op("clip", "superscaler.full", (), ("clip",), ("#shape", 1.0, F64)))
    for p in ("w1", "b1", "w2"):
        op("superscaler.sgd", f"{p} g{p} lr clip", f"{p}n", 0.0, 0.0, False, 0.0)
    tensors = tuple(Tensor(n, s, F64, kinds.get(n, "activation")) for n, s in shapes.items())
    gradients = {p: f"g{p}" for p in ("w1", "b1", "w2")}
    updates = {p: f"{p}n" for p in ("w1", "b1", "w2")}
    return Graph(tensors, tuple(ops), ("x", "lr"), {"loss": "loss"}, gradients, updates)


class Builder:
    """One role's Program, block by block; a tensor's value is known by its name, layout and what it is over."""

    def __init__(self, graph: Graph, space: Space, workers: Sequence[int]) -> None:
        self.graph = graph
        self.space = space
        self.workers = tuple(workers)
        self.values: list[Value] = []
        self.blocks: list[Block] = []
        self.order: list[Item] = []
        self.definitions: list[Definition] = []
        self.frees: list[tuple[int, ...]] = []
        self.buffers: list[Buffer] = []
        self.index = {op.name: i for i, op in enumerate(graph.ops)}

    def value(self, tensor: str, mesh: str = "m", over: tuple[str, ...] = (), **states: Any) -> int:
        value = Value(tensor, self.space.layout(mesh, states), over)
        if value not in self.values:
            self.values.append(value)
        return self.values.index(value)

    def call(self, ops: str, ins: Sequence[int], outs: Sequence[int], mesh: str = "m", **splits: Any) -> Call:
        """The named ops as one definition; ``splits``: per op name, ((axis, Split), …)."""
        names = ops.split()
        base = self.index[names[0]]
        local = {self.values[v].tensor: i for i, v in enumerate(ins)}
        rows: list[Row] = []
        for name in names:
            op = self.graph.op[name]
            operands = tuple(local[n] for n in op.inputs)
            for n in op.outputs:
                local[n] = len(local)
            outputs = tuple(local[n] for n in op.outputs)
            rows.append(Row(self.index[name] - base, op.target, op.args, operands, outputs, splits.get(name, ())))
        out = tuple(local[self.values[v].tensor] for v in outs)
        self.definitions.append(Definition(len(ins), tuple(rows), out))
        return Call(len(self.definitions) - 1, base, tuple(ins), tuple(outs), mesh)

    def block(self, kind: Any, *steps: Any, over: tuple[str, ...] = (), lane: Any = "compute", name: str = "") -> int:
        self.blocks.append(Block(name or kind, kind, "m", steps, over, lane))
        return len(self.blocks) - 1

    def run(self, *items: tuple[int, int] | tuple[int, int, tuple[int, ...]]) -> None:
        for block, microbatch, *frees in items:
            number = -1
            if frees:
                self.frees.append(frees[0])
                number = len(self.frees) - 1
            self.order.append(Item(block, microbatch, 0, 0, number))

    def program(
        self, inputs: dict[str, int], state: dict[str, int], gradients: dict[str, int], **outputs: int
    ) -> Program:
        return Program(
            self.workers, tuple(self.values), tuple(self.blocks), tuple(self.order), tuple(self.frees), inputs, state,
            outputs, gradients, tuple(self.buffers), sum(b.size * len(b.offsets) for b in self.buffers),
        )  # fmt: skip


def plan_of(
    graph: Graph, space: Space, programs: Sequence[Program], definitions: Sequence[Definition], workers: int,
    homes: dict[str, Layout], *, groupings: Sequence[Grouping] = (), routes: Sequence[Route] = (),
    microaxis: str = "", microbatches: int = 1,
) -> Plan:  # fmt: skip
    entry = Entry(
        graph,
        tuple(definitions),
        tuple(programs),
        tuple(groupings),
        tuple(routes),
        CERTIFICATE,
        microaxis,
        microbatches,
    )
    state = tuple(StateTensor(t.name, t.shape, t.dtype, t.kind, homes[t.name]) for t in graph.state())
    return Plan({"train": entry}, space, state, Cluster.local(workers), workers, {}, {"lr": 0.1, "seed": 0})


FORWARD = "h0 h1 h2 y loss"
BACKWARD = "gy h2t gw2 w2t gh2 gh1 gb1 xt gw1"
UPDATE = "clip w1n b1n w2n"


def whole() -> Plan:
    """One worker: forward, backward, update."""
    graph = two_layers()
    space = Space((), (Mesh("m", (), (), (0,)),))
    b = Builder(graph, space, [0])
    v = b.value
    x, lr, w1, b1, w2, h1, h2 = (v(n) for n in ("x", "lr", "w1", "b1", "w2", "h1", "h2"))
    loss, gw1, gb1, gw2 = (v(n) for n in ("loss", "gw1", "gb1", "gw2"))
    w1n, b1n, w2n = (v(n) for n in ("w1n", "b1n", "w2n"))
    forward = b.block("forward", b.call(FORWARD, (x, w1, b1, w2), (h1, h2, loss)))
    backward = b.block("backward", b.call(BACKWARD, (x, h1, h2, w2), (gw1, gb1, gw2)))
    update = b.call(UPDATE, (w1, b1, w2, gw1, gb1, gw2, lr), (w1n, b1n, w2n))
    optimizer = b.block("optimizer", update, Commit(w1n, w1), Commit(b1n, b1), Commit(w2n, w2))
    b.run((forward, 0), (backward, 0, (h1, h2)), (optimizer, 0))
    state = {"w1": w1, "b1": b1, "w2": w2}
    program = b.program({"x": x, "lr": lr}, state, {"w1": gw1, "b1": gb1, "w2": gw2}, loss=loss)
    return plan_of(graph, space, [program], b.definitions, 1, dict.fromkeys(state, Layout("m")))


def tensor_parallel(*, sizes: tuple[int, ...] | None = None, ways: int = 2) -> Plan:
    """The hidden dim split over devices: one all-reduce of the loss's operand, evenly or not."""
    graph = two_layers()
    space = Space((Axis("t", ways, "space", sizes),), (Mesh("m", ("t",), (ways,), tuple(range(ways))),))
    b = Builder(graph, space, range(ways))
    v = b.value
    column, row, flat = Shard(1, H), Shard(0, H), Shard(0, H)
    x, lr = v("x"), v("lr")
    w1, b1, w2, h1, h2 = v("w1", t=column), v("b1", t=flat), v("w2", t=row), v("h1", t=column), v("h2", t=column)
    part, y, loss = v("y", t=Partial()), v("y"), v("loss")
    gw1, gb1, gw2 = v("gw1", t=column), v("gb1", t=flat), v("gw2", t=row)
    w1n, b1n, w2n = v("w1n", t=column), v("b1n", t=flat), v("w2n", t=row)

    def on(dim: str) -> tuple[tuple[str, Split], ...]:
        return (("t", Split(dim, H)),)

    def dims(target: str, names: str) -> dict[str, Any]:
        return {name: on(target) for name in names.split()}

    first = b.call("h0 h1 h2 y", (x, w1, b1, w2), (h1, h2, part), **dims("o", "h0"), **dims("h", "h1 h2"), y=on("h"))
    second = b.call("loss", (y,), (loss,))
    forward = b.block("forward", first, Collective("all_reduce", part, y, ("t",), 0, 0), second)
    split = {
        "h2t": on("h"), "gw2": on("b"), "w2t": on("b"), "gh2": on("o"), "gh1": on("h"), "gb1": on("h"), "gw1": on("o"),
    }  # fmt: skip
    backward = b.block("backward", b.call(BACKWARD, (x, h1, h2, w2), (gw1, gb1, gw2), **split))
    update = {"w1n": on("h"), "b1n": on("h"), "w2n": on("b")}
    step = b.call(UPDATE, (w1, b1, w2, gw1, gb1, gw2, lr), (w1n, b1n, w2n), **update)
    optimizer = b.block("optimizer", step, Commit(w1n, w1), Commit(b1n, b1), Commit(w2n, w2))
    b.run((forward, 0), (backward, 0, (h1, h2)), (optimizer, 0))
    state = {"w1": w1, "b1": b1, "w2": w2}
    program = b.program({"x": x, "lr": lr}, state, {"w1": gw1, "b1": gb1, "w2": gw2}, loss=loss)
    homes = {n: b.values[i].layout for n, i in state.items()}
    grouping = Grouping((tuple(range(ways)),))
    return plan_of(graph, space, [program], b.definitions, ways, homes, groupings=[grouping])


def pipelined(microbatches: int = 4, sizes: tuple[int, ...] | None = None, *, slow: float | None = None) -> Plan:
    """Two stages: the hidden activation goes forth, its gradient back; gradients are summed over micro-batches."""
    graph = two_layers(slow)
    space = Space((Axis("mb", microbatches, "time", sizes),), (Mesh("m", (), (), (0,)), Mesh("n", (), (), (1,))))
    rows, over = Shard(0, B), ("mb",)

    def on(dim: str) -> tuple[tuple[str, Split], ...]:
        return (("mb", Split(dim, B)),)

    first = Builder(graph, space, [0])
    v = first.value
    x, lr, w1, b1 = v("x"), v("lr"), v("w1"), v("b1")
    xj, h1, h2, gh2 = (v(n, "m", over, mb=rows) for n in ("x", "h1", "h2", "gh2"))
    gw1j, gb1j = (v(n, "m", over, mb=Partial()) for n in ("gw1", "gb1"))
    gw1, gb1, w1n, b1n = (v(n) for n in ("gw1", "gb1", "w1n", "b1n"))
    call = first.call("h0 h1 h2", (xj, w1, b1), (h1, h2), h0=on("b"), h1=on("b"), h2=on("b"))
    forward = first.block("forward", Slice(x, xj), call, over=over)
    send = first.block("send", Send(h2, 0, 0), over=over, lane="comm")
    recv = first.block("recv", Recv(gh2, 1, 1), over=over, lane="comm")
    call = first.call("gh1 gb1 xt gw1", (gh2, h1, xj), (gb1j, gw1j), gh1=on("b"), gb1=on("b"), xt=on("b"), gw1=on("h"))
    backward = first.block("backward", call, Accumulate(gb1j, gb1), Accumulate(gw1j, gw1), over=over)
    call = first.call("clip w1n b1n", (w1, b1, gw1, gb1, lr), (w1n, b1n))
    update = first.block("optimizer", call, Commit(w1n, w1), Commit(b1n, b1))
    _one_f_one_b(first, microbatches, 2, forward, send, recv, backward)
    first.run((update, 0))
    one = first.program({"x": x, "lr": lr}, {"w1": w1, "b1": b1}, {"w1": gw1, "b1": gb1})

    last = Builder(graph, space, [1])
    last.definitions = first.definitions
    v = last.value
    lr, w2, h2, gh2 = v("lr", "n"), v("w2", "n"), v("h2", "n", over, mb=rows), v("gh2", "n", over, mb=rows)
    lossj, gw2j = v("loss", "n", over, mb=Partial()), v("gw2", "n", over, mb=Partial())
    loss, gw2, w2n = v("loss", "n"), v("gw2", "n"), v("w2n", "n")
    recv = last.block("recv", Recv(h2, 0, 0), over=over, lane="comm")
    rows_of = {"y": on("b")} if slow is None else {"y0": on("b"), "y": on("b")}
    call = last.call(
        " ".join(rows_of) + " loss gy h2t gw2 w2t gh2", (h2, w2), (lossj, gw2j, gh2), "n", **rows_of,
        loss=on("b"), gy=on("b"), h2t=on("b"), gw2=on("h"), gh2=on("b"),
    )  # fmt: skip
    both = last.block("forward", call, Accumulate(lossj, loss), Accumulate(gw2j, gw2), over=over)
    send = last.block("send", Send(gh2, 1, 1), over=over, lane="comm")
    call = last.call("clip w2n", (w2, gw2, lr), (w2n,), "n")
    update = last.block("optimizer", call, Commit(w2n, w2))
    for j in range(microbatches):
        last.run((recv, j), (both, j, (h2,)), (send, j, (gh2,)))
    last.run((update, 0))
    two = last.program({"lr": lr}, {"w2": w2}, {"w2": gw2}, loss=loss)

    routes = [
        route(space, "h2", (B, H), space.layout("m", {"mb": rows}), space.layout("n", {"mb": rows})),
        route(space, "gh2", (B, H), space.layout("n", {"mb": rows}), space.layout("m", {"mb": rows})),
    ]
    homes = {"w1": Layout("m"), "b1": Layout("m"), "w2": Layout("n")}
    return plan_of(
        graph, space, [one, two], first.definitions, 2, homes, routes=routes, microaxis="mb", microbatches=microbatches
    )


def _one_f_one_b(b: Builder, microbatches: int, ahead: int, forward: int, send: int, recv: int, backward: int) -> None:
    for j in range(microbatches + ahead):
        if j < microbatches:
            b.run((forward, j), (send, j))
        if j >= ahead:
            b.run((recv, j - ahead), (backward, j - ahead))


def in_arena(plan: Plan) -> Plan:
    """The plan with a place in the arena for every value that outlives its task."""
    entry = plan.entries["train"]
    programs = tuple(_with_buffers(plan, program) for program in entry.programs)
    return msgspec.structs.replace(plan, entries={"train": msgspec.structs.replace(entry, programs=programs)})


def _with_buffers(plan: Plan, program: Program) -> Program:
    entry = plan.entries["train"]
    bound = Binding(plan, entry, program, program.workers[0])
    buffers: list[Buffer] = []
    end = 0
    for value, place in enumerate(places(program, users(program))):
        if place == "held":
            size = -(-bound.tensor(value).bytes // 64) * 64
            count = len(bound.instances(value))
            buffers.append(Buffer(value, size, tuple(end + size * i for i in range(count))))
            end += size * count
    return msgspec.structs.replace(program, buffers=tuple(buffers), arena=end)


# --- what plain torch makes of it ------------------------------------------------------------------------------------


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The parameters of :func:`two_layers`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w1": (I, H), "b1": (H,), "w2": (H, O)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def batch(seed: int = 1) -> torch.Tensor:
    """A global batch of :func:`two_layers`."""
    return torch.randn(B, I, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Reference(nn.Module):
    """:func:`two_layers` in plain torch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        for name, value in weights(seed).items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.relu(x @ self.w1 + self.b1) @ self.w2).sum()  # type: ignore[operator]

    def steps(self, count: int, lr: float = 0.1) -> list[float]:
        """Losses of so many steps of SGD, always on the same batch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=lr)
        losses: list[float] = []
        for _ in range(count):
            optimizer.zero_grad()
            loss = self(batch())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal as DESIGN §6 judges it."""
    got, expected = got.detach(), expected.detach()
    return bool((got - expected).norm() <= 1e-9 * max(float(expected.norm()), 1e-6))
