"""What a task costs: a roofline of operations and bytes, or what `superscaler profile` measured here."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from superscaler.errors import ClusterError
from superscaler.ir.cluster import Cluster, Device, Link
from superscaler.ir.graph import ITEMSIZE, Graph, Op
from superscaler.ir.layout import Layout, Shard, Space
from superscaler.ir.rules import rule_for
from superscaler.ir.rules.rule import Rule, Splits
from superscaler.scheduler.keys import op_key
from superscaler.scheduler.profile import Profile
from superscaler.transforms.reshard import MoveKind, seconds

VIEWS = frozenset({"superscaler.reshape", "superscaler.expand", "aten.permute.default", "superscaler.block"})
EACH = frozenset({"superscaler.sleep_each", "superscaler.sleep_each_backward"})
"""Ops that sleep so long per element."""
LONGEST = 10**12
"""Microseconds of one task: sums of many stay within what is counted exactly."""


@lru_cache(maxsize=65536)
def _share(splits: Splits, space: Space) -> float:
    return 1.0 / prod(space.axis(a).ways for a, s in splits if not s.passes) if splits else 1.0


def operations(op: Op, rule: Rule) -> float:
    """Floating-point operations of the whole op: those of matmuls and attention; others count as one per element."""
    if rule.family == "matmul":
        return 2.0 * prod(d.size for d in rule.dims.values())
    if rule.family == "attention":
        return _attention_operations(op, {name: dim.size for name, dim in rule.dims.items()})
    return 0.0


def _attention_operations(op: Op, sizes: dict[str, int]) -> float:
    """Scores contract ``d``, their sum over values gives ``e``; the backward makes the scores again, and four more."""
    d = sizes.get("d", 1)
    e = sizes.get("e", d)
    pairs = prod(size for name, size in sizes.items() if name not in ("d", "e"))
    return 2.0 * pairs * (d + e if op.phase == "forward" else 3 * d + 2 * e)


def slept(op: Op, graph: Graph) -> float:
    """Seconds that a sleeping op takes as a whole."""
    seconds = float(next((a for a in op.args if isinstance(a, int | float)), 0.0)) / 1000.0
    return seconds * graph.tensor[op.outputs[0]].numel if op.target in EACH else seconds


def op_seconds(
    op: Op, graph: Graph, splits: Splits, space: Space, device: Device, profile: Profile | None = None
) -> float:
    """Seconds of one part of an op on a device: as measured, if ``profile`` is of such a device and has it."""
    if op.target in EACH:
        return slept(op, graph) * _share(splits, space)
    if op.target.startswith("superscaler.sleep"):
        return slept(op, graph)
    if op.target in VIEWS:
        return 0.0
    if profile is not None and profile.machine.kind == device.name:
        measured = profile.ops.get(op_key(op, graph, splits, space))
        if measured is not None:
            return measured / device.speed
    rule = rule_for(op, graph)
    share = _share(splits, space)
    names = (*op.inputs, *op.outputs)
    size = sum(graph.tensor[n].bytes for n in names) * share
    dtype = graph.tensor[op.outputs[0]].dtype
    peak = device.flops.get(dtype, device.flops["float32"]) * device.speed
    compute = operations(op, rule) * share / peak
    return max(compute, size / (device.bandwidth * device.speed)) + device.overhead


def microseconds(seconds: float, task: str) -> int:
    """A task's duration as it is scheduled. Raises :class:`ClusterError` for one that takes for ever."""
    if not seconds * 1e6 <= LONGEST:
        raise ClusterError(
            f"{task} would take {seconds:.3g} s, more than {LONGEST / 1e6:,.0f} s",
            "as predicted from what is said or measured of devices and links",
            hint="larger figures for flops, bandwidth or speed in the cluster, smaller ones for overhead or latency",
        )
    return max(1, round(seconds * 1e6))


def held_bytes(tensor: str, layout: Layout, graph: Graph, space: Space) -> int:
    """Bytes of the largest part of a tensor in a layout."""
    found = graph.tensor[tensor]
    numel = found.numel
    for name, state in layout.states:
        if isinstance(state, Shard):
            ways = space.axis(name).ways
            numel = -(-numel // state.extent) * -(-state.extent // ways) if numel else 0
    return numel * ITEMSIZE[found.dtype]


def move_seconds(kind: MoveKind, size: int, devices: tuple[int, ...], cluster: Cluster) -> float:
    """Seconds of a collective over ``devices`` of a tensor whose complete part has ``size`` bytes."""
    link = slowest(devices, cluster)
    return seconds(kind, size, len(devices), link.bandwidth, link.latency)


def slowest(devices: tuple[int, ...], cluster: Cluster) -> Link:
    """The link class that a ring over ``devices`` is bound by."""
    nodes = {d // cluster.per_node for d in devices}
    return cluster.inter if len(nodes) > 1 else cluster.intra
