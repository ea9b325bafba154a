"""Small plans written by hand, one per thing that a plan can say: they know nothing of how plans are compiled.

A two-layer network ``loss = 1/N Σ (relu(x w1) w2)²`` with its gradients and SGD, in one piece, split over two workers,
in two stages, with its hidden layer in parts one after the other, with an activation kept in host memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from superscaler.ir.cluster import Cluster
from superscaler.ir.entry import Certificate, Entry, StateTensor
from superscaler.ir.graph import ITEMSIZE, Graph, Op, Tensor
from superscaler.ir.layout import Axis, Mesh, Partial, Shard, Space, State
from superscaler.ir.plan import Plan
from superscaler.ir.program import (
    Accumulate,
    At,
    Block,
    Buffer,
    Call,
    Collective,
    Commit,
    Definition,
    Grouping,
    Item,
    Offload,
    Program,
    Route,
    Row,
    Slice,
    Step,
    Value,
)
from superscaler.ir.rules.rule import Split

B, I, H, O = 8, 4, 6, 2  # noqa: E741
CERTIFICATE = Certificate("feasible", 0, 0, 0.0, 0, "", "", 0, 0.0)
MICRO = ("micro",)
OPS = """
h = aten.mm.default x w1
a = aten.relu.default h
y = aten.mm.default a w2
q = aten.mul.Tensor y y
s = aten.sum.dim_IntList q | 0 1
loss = aten.mul.Scalar s | 0.0625
gy = aten.mul.Scalar y | 0.125
at = aten.permute.default a | 1 0
gw2 = aten.mm.default at gy
w2t = aten.permute.default w2 | 1 0
ga = aten.mm.default gy w2t
gh = aten.threshold_backward.default ga h / 0
xt = aten.permute.default x | 1 0
gw1 = aten.mm.default xt gh
clip = superscaler.full / #shape 1.0 float32
w1n = superscaler.sgd w1 gw1 lr clip / 0.0 0.0 False 0.0
w2n = superscaler.sgd w2 gw2 lr clip / 0.0 0.0 False 0.0
"""
SHAPES: dict[str, tuple[int, ...]] = {
    "x": (B, I), "w1": (I, H), "w2": (H, O), "lr": (), "h": (B, H), "a": (B, H), "y": (B, O), "q": (B, O), "s": (),
    "loss": (), "gy": (B, O), "at": (H, B), "gw2": (H, O), "w2t": (O, H), "ga": (B, H), "gh": (B, H), "xt": (I, B),
    "gw1": (I, H), "clip": (), "w1n": (I, H), "w2n": (H, O),
}  # fmt: skip


def _literal(text: str) -> Any:
    if text.lstrip("-").isdigit():
        return int(text)
    return {"False": False, "True": True}.get(text, float(text) if text[0].isdigit() else text)


def graph_of(text: str, shapes: dict[str, tuple[int, ...]], inputs: Sequence[str], **results: Any) -> Graph:
    """A graph from lines ``out = target in in``; after ``|`` one list argument, or a scalar, after ``/`` several."""
    ops: list[Op] = []
    written: set[str] = set()
    for line in text.strip().splitlines():
        out, _, rest = line.partition(" = ")
        head, bar, tail = rest.partition(" | ") if " | " in rest else rest.partition(" / ")
        target, *ins = head.split()
        more = tuple(_literal(t) for t in tail.split())
        if bar == " | ":
            more = (list(more),) if all(isinstance(m, int) for m in more) else more
        phase = "optimizer" if "sgd" in target else "forward"
        ops.append(Op(out, target, tuple(ins), (out,), (*(f"${i}" for i in range(len(ins))), *more), phase))  # type: ignore[arg-type]
        written.add(out)
    kinds = {n: "activation" if n in written else "input" if n in inputs else "parameter" for n in shapes}
    tensors = tuple(Tensor(n, s, "float32", kinds[n]) for n, s in shapes.items())  # type: ignore[arg-type]
    return Graph(tensors, tuple(ops), tuple(inputs), **results)


def network() -> Graph:
    """The two-layer network with its gradients and SGD."""
    return graph_of(
        OPS, SHAPES, ("x", "lr"), outputs={"loss": "loss"}, gradients={"w1": "gw1", "w2": "gw2"},
        updates={"w1": "w1n", "w2": "w2n"},
    )  # fmt: skip


class Role:
    """One Program being written. Every instance of every value that outlives a block gets a place of its own."""

    def __init__(self, graph: Graph, space: Space, workers: Sequence[int], definitions: list[Definition]) -> None:
        self.graph = graph
        self.space = space
        self.workers = tuple(workers)
        self.definitions = definitions
        self.values: list[Value] = []
        self.blocks: list[Block] = []
        self.order: list[Item] = []
        self.frees: list[tuple[int, ...]] = []
        self.place = {op.name: i for i, op in enumerate(graph.ops)}

    def value(
        self, tensor: str, mesh: str = "m", over: tuple[str, ...] = (), terms: tuple[int, ...] = (), **states: State
    ) -> int:
        self.values.append(Value(tensor, self.space.layout(mesh, states), over, terms))
        return len(self.values) - 1

    def call(
        self, ops: str, ins: Sequence[int], outs: Sequence[int], mesh: str = "m", at: At = (),
        splits: dict[str, dict[str, Split]] | None = None,
    ) -> Call:  # fmt: skip
        """The named ops as one definition. ``splits``: op -> axis -> split."""
        names = ops.split()
        base = self.place[names[0]]
        local = {self.values[v].tensor: i for i, v in enumerate(ins)}
        rows: list[Row] = []
        for name in names:
            op = self.graph.op[name]
            operands = tuple(local[n] for n in op.inputs)
            local.update((n, len(local) + i) for i, n in enumerate(op.outputs))
            results = tuple(local[n] for n in op.outputs)
            split = tuple(sorted((splits or {}).get(name, {}).items(), key=lambda s: self.space.rank(s[0])))
            rows.append(Row(self.place[name] - base, op.target, op.args, operands, results, split))
        outputs = tuple(local[self.values[v].tensor] for v in outs)
        self.definitions.append(Definition(len(ins), tuple(rows), outputs))
        return Call(len(self.definitions) - 1, base, tuple(ins), tuple(outs), mesh, at)

    def block(self, kind: Any, *steps: Step, over: tuple[str, ...] = (), mesh: str = "m", lane: Any = "compute") -> int:
        self.blocks.append(Block(f"{kind}{len(self.blocks)}", kind, mesh, steps, over, lane))
        return len(self.blocks) - 1

    def run(self, block: int, microbatch: int = 0, frees: Sequence[int] = ()) -> None:
        if frees:
            self.frees.append(tuple(frees))
        self.order.append(Item(block, microbatch, 0, 0, len(self.frees) - 1 if frees else -1))

    def program(self, **named: dict[str, int]) -> Program:
        """``named``: inputs, state, outputs, gradients."""
        outside = {*named.get("inputs", {}).values(), *named.get("state", {}).values()}
        users: dict[int, set[int]] = {}
        for number, block in enumerate(self.blocks):
            for step in block.steps:
                for value in touched(step):
                    users.setdefault(value, set()).add(number)
        kept = {*named.get("outputs", {}).values(), *named.get("gradients", {}).values()}
        hosted = {s.dst for b in self.blocks for s in b.steps if isinstance(s, Offload) and s.to == "host"}
        shared = [v for v, blocks in users.items() if (len(blocks) > 1 or v in kept) and v not in outside | hosted]
        buffers, top = [], 0
        for value in sorted(shared):
            v = self.values[value]
            size = self.graph.tensor[v.tensor].numel * ITEMSIZE["float32"]
            count = 1
            for axis in v.over:
                count *= self.space.axis(axis).ways
            step = (size + 63) // 64 * 64
            buffers.append(Buffer(value, size, tuple(top + i * step for i in range(count))))
            top += count * step
        tables = {key: named.get(key, {}) for key in ("inputs", "state", "outputs", "gradients")}
        return Program(
            self.workers, tuple(self.values), tuple(self.blocks), tuple(self.order), tuple(self.frees), **tables,
            buffers=tuple(buffers), arena=top, peak=top + 4096,
        )  # fmt: skip


def touched(step: Step) -> tuple[int, ...]:
    """All values that a step names."""
    names = ("src", "dst", "into", "state", "local")
    single = tuple(getattr(step, n) for n in names if getattr(step, n, -1) >= 0)
    return (*getattr(step, "ins", ()), *getattr(step, "outs", ()), *single)


def plan_of(
    graph: Graph, space: Space, programs: Sequence[Program], definitions: Sequence[Definition], homes: dict[str, Any],
    *, groupings: Sequence[Grouping] = (), routes: Sequence[Route] = (), microaxis: str = "", name: str = "train",
) -> Plan:  # fmt: skip
    """A plan of one entry. ``homes``: state -> (mesh, states)."""
    state = tuple(
        StateTensor(n, graph.tensor[n].shape, "float32", "parameter", space.layout(*home)) for n, home in homes.items()
    )
    count = space.axis(microaxis).ways if microaxis else 1
    entry = Entry(
        graph, tuple(definitions), tuple(programs), tuple(groupings), tuple(routes), CERTIFICATE, microaxis, count
    )
    workers = 1 + max(d for mesh in space.meshes for d in mesh.devices)
    return Plan({name: entry}, space, state, Cluster.local(workers), workers)


# --- the plans --------------------------------------------------------------------------------------------------------

FORWARD = "h a y q s loss gy"
BACKWARD = "at gw2 w2t ga gh xt gw1"


def in_one_piece() -> Plan:
    """One worker, the whole batch."""
    graph, definitions = network(), []
    space = Space((Axis("t", 1, "space"),), (Mesh("m", ("t",), (1,), (0,)),))
    role = Role(graph, space, (0,), definitions)
    x, w1, w2, lr = (role.value(n) for n in ("x", "w1", "w2", "lr"))
    h, a, gy, loss = (role.value(n) for n in ("h", "a", "gy", "loss"))
    gw1, gw2, new1, new2 = (role.value(n) for n in ("gw1", "gw2", "w1n", "w2n"))
    forward = role.block("forward", role.call(FORWARD, (x, w1, w2), (h, a, gy, loss)))
    backward = role.block("backward", role.call(BACKWARD, (x, w2, h, a, gy), (gw1, gw2)))
    optimizer = role.block(
        "optimizer", role.call("clip w1n w2n", (w1, w2, gw1, gw2, lr), (new1, new2)), Commit(new1, w1), Commit(new2, w2)
    )
    role.run(forward)
    role.run(backward, frees=(h, a, gy))
    role.run(optimizer)
    program = role.program(
        inputs={"x": x, "lr": lr}, state={"w1": w1, "w2": w2}, outputs={"loss": loss},
        gradients={"w1": gw1, "w2": gw2},
    )  # fmt: skip
    return plan_of(graph, space, (program,), definitions, {"w1": ("m", {}), "w2": ("m", {})})


def tensor_parallel(microbatches: int = 2) -> Plan:
    """Two workers: the first layer split by column, the second by row; gradients summed over micro-batches."""
    graph, definitions = network(), []
    axes = (Axis("t", 2, "space"), Axis("micro", microbatches, "time"))
    space = Space(axes, (Mesh("m", ("t",), (2,), (0, 1)),))
    rows = Shard(0, microbatches, B // microbatches)
    b, h_ = Split("b", microbatches, B // microbatches), Split("h", 2, H // 2)
    column, contraction = Split("o", 2, H // 2), Split("h", 2, H // 2)
    role = Role(graph, space, (0, 1), definitions)
    x, lr = role.value("x"), role.value("lr")
    w1, w2 = role.value("w1", t=Shard(1, 2, 3)), role.value("w2", t=Shard(0, 2, 3))
    xj = role.value("x", over=MICRO, micro=rows)
    h, a = (role.value(n, over=MICRO, t=Shard(1, 2, 3), micro=rows) for n in "ha")
    part = role.value("y", over=MICRO, t=Partial(), micro=rows)
    y = role.value("y", over=MICRO, micro=rows)
    gy = role.value("gy", over=MICRO, micro=rows)
    lossj, loss = role.value("loss", over=MICRO, micro=Partial()), role.value("loss")
    split = {
        "h": {"micro": b, "t": column},
        "a": {"micro": b, "t": h_},
        "y": {"micro": b, "t": contraction},
        **{n: {"micro": b} for n in ("q", "gy")},
        "s": {"micro": b},
        "loss": {"micro": Split("+", inputs=(0,))},
    }
    forward = role.block(
        "forward",
        Slice(x, xj),
        role.call("h a y", (xj, w1, w2), (h, a, part), splits=split),
        Collective("all_reduce", part, y, ("t",), 0, 0),
        role.call("q s loss gy", (y,), (lossj, gy), splits=split),
        Accumulate(lossj, loss),
        over=MICRO,
    )
    gw1j = role.value("gw1", over=MICRO, t=Shard(1, 2, 3), micro=Partial())
    gw2j = role.value("gw2", over=MICRO, t=Shard(0, 2, 3), micro=Partial())
    gw1, gw2 = role.value("gw1", t=Shard(1, 2, 3)), role.value("gw2", t=Shard(0, 2, 3))
    hb = Split("h", microbatches, B // microbatches)  # the contraction of a weight gradient is the batch
    back = {
        "at": {"micro": Split("b", microbatches, B // microbatches), "t": Split("h", 2, 3)},
        "gw2": {"micro": hb, "t": Split("b", 2, 3)},
        "w2t": {"t": Split("b", 2, 3)},
        "ga": {"micro": b, "t": column},
        "gh": {"micro": b, "t": h_},
        "xt": {"micro": Split("b", microbatches, B // microbatches)},
        "gw1": {"micro": hb, "t": Split("o", 2, 3)},
    }
    backward = role.block(
        "backward",
        role.call(BACKWARD, (xj, w2, h, a, gy), (gw1j, gw2j), splits=back),
        Accumulate(gw1j, gw1),
        Accumulate(gw2j, gw2),
        over=MICRO,
    )
    new1, new2 = role.value("w1n", t=Shard(1, 2, 3)), role.value("w2n", t=Shard(0, 2, 3))
    update = {"w1n": {"t": Split("h", 2, 3)}, "w2n": {"t": Split("b", 2, 3)}}
    optimizer = role.block(
        "optimizer",
        role.call("clip w1n w2n", (w1, w2, gw1, gw2, lr), (new1, new2), splits=update),
        Commit(new1, w1),
        Commit(new2, w2),
    )
    for j in range(microbatches):
        role.run(forward, j)
        role.run(backward, j, frees=(xj, h, a, gy))
    role.run(optimizer)
    program = role.program(
        inputs={"x": x, "lr": lr}, state={"w1": w1, "w2": w2}, outputs={"loss": loss},
        gradients={"w1": gw1, "w2": gw2},
    )  # fmt: skip
    homes = {"w1": ("m", {"t": Shard(1, 2, 3)}), "w2": ("m", {"t": Shard(0, 2, 3)})}
    return plan_of(graph, space, (program,), definitions, homes, groupings=(Grouping(((0, 1),)),), microaxis="micro")
