"""More plans written by hand: stages, co-shards, collected results, host memory, a loss over a split vocabulary."""

from __future__ import annotations

from superscaler.ir.layout import Axis, Layout, Mesh, Partial, Shard, Space
from superscaler.ir.plan import Plan
from superscaler.ir.program import Accumulate, Collect, Collective, Commit, Grouping, Mask, Offload, Recv, Send, Slice
from superscaler.ir.rules.rule import Split
from superscaler.transforms.reshard import route
from tests.ir.plans_by_hand import (
    BACKWARD,
    FORWARD,
    MICRO,
    B,
    H,
    Role,
    graph_of,
    network,
    plan_of,
)


def pipelined(microbatches: int = 2) -> Plan:
    """Two stages of one worker each: the activation goes forward, its gradient comes back, per micro-batch."""
    graph, definitions = network(), []
    meshes = (Mesh("m0", (), (), (0,)), Mesh("m1", (), (), (1,)))
    space = Space((Axis("micro", microbatches, "time"),), meshes)
    rows = Shard(0, microbatches, B // microbatches)
    b, hb = (Split(d, microbatches, B // microbatches) for d in "bh")
    routes = tuple(
        route(space, n, graph.tensor[n].shape, Layout(s, (("micro", rows),)), Layout(d, (("micro", rows),)))
        for n, s, d in (("a", "m0", "m1"), ("ga", "m1", "m0"))
    )

    first = Role(graph, space, (0,), definitions)
    x, w1, lr = (first.value(n, "m0") for n in ("x", "w1", "lr"))
    xj, h, a, ga = (first.value(n, "m0", MICRO, micro=rows) for n in ("x", "h", "a", "ga"))
    gw1j, gw1, new1 = (
        first.value("gw1", "m0", MICRO, micro=Partial()),
        first.value("gw1", "m0"),
        first.value("w1n", "m0"),
    )
    split = {n: {"micro": b} for n in ("h", "a", "gh", "xt")} | {"gw1": {"micro": hb}}
    forward = first.block(
        "forward", Slice(x, xj), first.call("h a", (xj, w1), (h, a), "m0", splits=split), over=MICRO, mesh="m0"
    )
    send = first.block("send", Send(a, 0, 0), over=MICRO, mesh="m0", lane="comm")
    recv = first.block("recv", Recv(ga, 1, 1), over=MICRO, mesh="m0", lane="comm")
    backward = first.block(
        "backward", first.call("gh xt gw1", (xj, h, ga), (gw1j,), "m0", splits=split), Accumulate(gw1j, gw1),
        over=MICRO, mesh="m0",
    )  # fmt: skip
    update = first.block("optimizer", first.call("clip w1n", (w1, gw1, lr), (new1,), "m0"), Commit(new1, w1), mesh="m0")

    second = Role(graph, space, (1,), definitions)
    w2, lr2 = second.value("w2", "m1"), second.value("lr", "m1")
    a2, ga2 = (second.value(n, "m1", MICRO, micro=rows) for n in ("a", "ga"))
    lossj, loss = second.value("loss", "m1", MICRO, micro=Partial()), second.value("loss", "m1")
    gw2j, gw2, new2 = (
        second.value("gw2", "m1", MICRO, micro=Partial()), second.value("gw2", "m1"), second.value("w2n", "m1")
    )  # fmt: skip
    splits = {n: {"micro": b} for n in ("y", "q", "s", "gy", "at", "ga")}
    splits |= {"loss": {"micro": Split("+", inputs=(0,))}, "gw2": {"micro": hb}}
    recv2 = second.block("recv", Recv(a2, 0, 0), over=MICRO, mesh="m1", lane="comm")
    both = second.block(
        "backward",
        second.call("y q s loss gy at gw2 w2t ga", (a2, w2), (lossj, gw2j, ga2), "m1", splits=splits),
        Accumulate(lossj, loss), Accumulate(gw2j, gw2), over=MICRO, mesh="m1",
    )  # fmt: skip
    send2 = second.block("send", Send(ga2, 1, 1), over=MICRO, mesh="m1", lane="comm")
    update2 = second.block(
        "optimizer", second.call("clip w2n", (w2, gw2, lr2), (new2,), "m1"), Commit(new2, w2), mesh="m1"
    )
    first.run(forward, 0)
    first.run(send, 0)
    for j in range(microbatches):
        second.run(recv2, j)
        second.run(both, j, frees=(a2,))
        second.run(send2, j, frees=(ga2,))
        first.run(recv, j)
        first.run(backward, j, frees=(xj, h, a, ga))
        if j + 1 < microbatches:
            first.run(forward, j + 1)
            first.run(send, j + 1)
    first.run(update)
    second.run(update2)
    programs = (
        first.program(inputs={"x": x, "lr": lr}, state={"w1": w1}, gradients={"w1": gw1}),
        second.program(inputs={"lr": lr2}, state={"w2": w2}, outputs={"loss": loss}, gradients={"w2": gw2}),
    )
    homes = {"w1": ("m0", {}), "w2": ("m1", {})}
    return plan_of(graph, space, programs, definitions, homes, routes=routes, microaxis="micro")


def co_sharded() -> Plan:
    """One worker; the hidden layer in two parts, one after the other, each recomputed in the backward."""
    graph, definitions = network(), []
    space = Space((Axis("part", 2, "time"),), (Mesh("m", (), (), (0,)),))
    cols, half = Shard(1, 2, H // 2), Shard(0, 2, H // 2)
    role = Role(graph, space, (0,), definitions)
    x, w1, w2, lr = (role.value(n) for n in ("x", "w1", "w2", "lr"))
    over = ("part",)
    w1p, w2p = role.value("w1", over=over, part=cols), role.value("w2", over=over, part=half)
    yp, y = role.value("y", over=over, part=Partial()), role.value("y")
    gy, loss = role.value("gy"), role.value("loss")
    column, contraction, pointwise = Split("o", 2, 3), Split("h", 2, 3), Split("h", 2, 3)
    split = {"h": {"part": column}, "a": {"part": pointwise}, "y": {"part": contraction}}
    steps = []
    for i in range(2):
        at = (("part", i),)
        steps += [
            Slice(w1, w1p, at), Slice(w2, w2p, at), role.call("h a y", (x, w1p, w2p), (yp,), at=at, splits=split),
            Accumulate(yp, y, at=at),
        ]  # fmt: skip
    forward = role.block("forward", *steps, role.call("q s loss gy", (y,), (loss, gy)))
    w1q, w2q = role.value("w1", over=over, part=cols), role.value("w2", over=over, part=half)
    h, a = role.value("h", over=over, part=cols), role.value("a", over=over, part=cols)
    gw1p, gw2p = role.value("gw1", over=over, part=cols), role.value("gw2", over=over, part=half)
    gw1, gw2, new1, new2 = (role.value(n) for n in ("gw1", "gw2", "w1n", "w2n"))
    split |= {
        "at": {"part": Split("h", 2, 3)}, "gw2": {"part": Split("b", 2, 3)}, "w2t": {"part": Split("b", 2, 3)},
        "ga": {"part": column}, "gh": {"part": pointwise}, "gw1": {"part": Split("o", 2, 3)},
    }  # fmt: skip
    steps = []
    for i in range(2):
        at = (("part", i),)
        steps += [
            Slice(w1, w1q, at), Slice(w2, w2q, at), role.call("h a", (x, w1q), (h, a), at=at, splits=split),
            role.call(BACKWARD, (x, w2q, h, a, gy), (gw1p, gw2p), at=at, splits=split),
            Collect(gw1p, gw1, at=at), Collect(gw2p, gw2, at=at),
        ]  # fmt: skip
    backward = role.block("backward", *steps)
    optimizer = role.block(
        "optimizer", role.call("clip w1n w2n", (w1, w2, gw1, gw2, lr), (new1, new2)), Commit(new1, w1), Commit(new2, w2)
    )
    for block in (forward, backward, optimizer):
        role.run(block)
    program = role.program(
        inputs={"x": x, "lr": lr}, state={"w1": w1, "w2": w2}, outputs={"loss": loss},
        gradients={"w1": gw1, "w2": gw2},
    )  # fmt: skip
    return plan_of(graph, space, (program,), definitions, {"w1": ("m", {}), "w2": ("m", {})})


def offloaded() -> Plan:
    """In one piece, with an activation in host memory between forward and backward."""
    graph, definitions = network(), []
    space = Space((), (Mesh("m", (), (), (0,)),))
    role = Role(graph, space, (0,), definitions)
    x, w1, w2, lr = (role.value(n) for n in ("x", "w1", "w2", "lr"))
    h, a, gy, loss, away, back = (role.value(n) for n in ("h", "a", "gy", "loss", "a", "a"))
    gw1, gw2, new1, new2 = (role.value(n) for n in ("gw1", "gw2", "w1n", "w2n"))
    forward = role.block("forward", role.call(FORWARD, (x, w1, w2), (h, a, gy, loss)))
    out = role.block("transfer", Offload(a, away, "host"), lane="transfer")
    into = role.block("transfer", Offload(away, back, "device"), lane="transfer")
    backward = role.block("backward", role.call(BACKWARD, (x, w2, h, back, gy), (gw1, gw2)))
    optimizer = role.block(
        "optimizer", role.call("clip w1n w2n", (w1, w2, gw1, gw2, lr), (new1, new2)), Commit(new1, w1), Commit(new2, w2)
    )
    role.run(forward)
    role.run(out, frees=(a,))
    role.run(into, frees=(away,))
    role.run(backward, frees=(h, back, gy))
    role.run(optimizer)
    program = role.program(
        inputs={"x": x, "lr": lr}, state={"w1": w1, "w2": w2}, outputs={"loss": loss},
        gradients={"w1": gw1, "w2": gw2},
    )  # fmt: skip
    return plan_of(graph, space, (program,), definitions, {"w1": ("m", {}), "w2": ("m", {})})


def collected() -> Plan:
    """Two data-parallel workers, micro-batches; the result of all of them is put together on each worker."""
    graph = graph_of(
        "y = aten.mm.default x w", {"x": (8, 4), "w": (4, 2), "y": (8, 2)}, ("x",), outputs={"y": "y"}
    )  # fmt: skip
    space = Space((Axis("d", 2, "space"), Axis("micro", 2, "time")), (Mesh("m", ("d",), (2,), (0, 1)),))
    data, micro = Shard(0, 2, 4), Shard(0, 2, 2)
    definitions = []
    role = Role(graph, space, (0, 1), definitions)
    x, w = role.value("x", d=data), role.value("w")
    xj, yj = (role.value(n, over=MICRO, d=data, micro=micro) for n in "xy")
    y, whole = role.value("y", d=data), role.value("y")
    split = {"y": {"d": Split("b", 2, 4), "micro": Split("b", 2, 2)}}
    forward = role.block(
        "forward", Slice(x, xj), role.call("y", (xj, w), (yj,), splits=split), Collect(yj, y), over=MICRO
    )
    gather = role.block("collective", Collective("all_gather", y, whole, ("d",), 0, 0), lane="comm")
    for block, j in ((forward, 0), (forward, 1), (gather, 0)):
        role.run(block, j)
    program = role.program(inputs={"x": x}, state={"w": w}, outputs={"y": whole})
    return plan_of(
        graph, space, (program,), definitions, {"w": ("m", {})}, groupings=(Grouping(((0, 1),)),), microaxis="micro",
        name="eval",
    )  # fmt: skip


def split_vocabulary() -> Plan:
    """Two workers: the normaliser of a softmax over a split vocabulary, a logsumexp of logsumexps."""
    graph = graph_of(
        "lse = superscaler.logsumexp x", {"x": (4, 6), "lse": (4,)}, ("x",), outputs={"lse": "lse"}
    )  # fmt: skip
    space = Space((Axis("t", 2, "space"),), (Mesh("m", ("t",), (2,), (0, 1)),))
    definitions = []
    role = Role(graph, space, (0, 1), definitions)
    x = role.value("x", t=Shard(1, 2, 3))
    part, lse = role.value("lse", t=Partial("logsumexp")), role.value("lse")
    call = role.call("lse", (x,), (part,), splits={"lse": {"t": Split("v", 2, 3)}})
    role.run(role.block("forward", call, Collective("all_reduce", part, lse, ("t",), 0, 0)))
    program = role.program(inputs={"x": x}, outputs={"lse": lse})
    return plan_of(graph, space, (program,), definitions, {}, groupings=(Grouping(((0, 1),)),), name="eval")


def global_norm() -> Plan:
    """Two stages of two workers: one term split, one replicated, added up over all four."""
    graph = graph_of(
        "a = superscaler.sumsq u\nb = superscaler.sumsq v\nn = superscaler.add_n a b",
        {"u": (4,), "v": (6,), "a": (), "b": (), "n": ()}, ("u", "v"), outputs={"n": "n"},
    )  # fmt: skip
    meshes = (
        Mesh("m0", ("t",), (2,), (0, 1)), Mesh("m1", ("t",), (2,), (2, 3)), Mesh("world", ("w",), (4,), (0, 1, 2, 3)),
    )  # fmt: skip
    space = Space((Axis("t", 2, "space"), Axis("w", 4, "space")), meshes)
    definitions = []
    first = Role(graph, space, (0, 1), definitions)
    u, a = first.value("u", "m0", t=Shard(0, 2, 2)), first.value("a", "m0", t=Partial())
    n0, total = first.value("n", "m0", terms=(0,), t=Partial()), first.value("n", "world")
    reduce = Collective("all_reduce", n0, total, ("w",), 0, 0)
    sums = first.call("a", (u,), (a,), "m0", splits={"a": {"t": Split("h", 2, 2)}})
    first.run(first.block("optimizer", sums, Accumulate(a, n0, 0), reduce, mesh="m0"))

    second = Role(graph, space, (2, 3), definitions)
    v, b = second.value("v", "m1"), second.value("b", "m1")
    masked, n1 = second.value("b", "m1", t=Partial()), second.value("n", "m1", terms=(1,), t=Partial())
    total1 = second.value("n", "world")
    call = second.call("b", (v,), (b,), "m1")
    reduce1 = Collective("all_reduce", n1, total1, ("w",), 0, 0)
    second.run(second.block("optimizer", call, Mask(b, masked, ("t",)), Accumulate(masked, n1, 1), reduce1, mesh="m1"))
    programs = (
        first.program(inputs={"u": u}, outputs={"n": total}),
        second.program(inputs={"v": v}, outputs={"n": total1}),
    )
    return plan_of(graph, space, programs, definitions, {}, groupings=(Grouping(((0, 1, 2, 3),)),), name="eval")


BY_HAND = (pipelined, co_sharded, offloaded, collected, split_vocabulary, global_norm)
