"""A user's own plan scripts: what the primitives allow, exact in float64, and what they refuse, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import superscaler as ss
from superscaler.errors import PlanError, SplitError, SuperscalerError, UsageError
from superscaler.ir.graph import Op
from superscaler.models import build
from superscaler.transforms.optimize import with_optimizer
from superscaler.transforms.place import place
from tests.exact import Subject

Script = Callable[[ss.Planner], None]


@cache
def subject() -> Subject:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    ids, labels = example(4, None)
    labels[0, :3] = labels[2] = -100
    return Subject(model, (ids, labels))


def linears(p: ss.Planner) -> list[Op]:
    return p.find("*.mlp.*", op="linear")


def backward(p: ss.Planner) -> list[Op]:
    return [each for op in linears(p) for each in p.backward_of(op)]


# --- assigning -------------------------------------------------------------------------------------------------------


def one_op_on_another_device(p: ss.Planner) -> None:
    p.assign(linears(p)[0], 1)


def every_op_on_the_next_device(p: ss.Planner) -> None:
    p.microbatches(2)
    for i, op in enumerate(p.find()):
        p.assign(op, i % 4)


def other_devices_for_the_next_op(p: ss.Planner) -> None:
    first, second, third, *_ = linears(p)
    p.assign(p.split(first, "o", 3), [0, 1, 2])
    p.assign(p.split(second, "h", 2), [3, 1])
    p.assign(p.split(third, "o", 2), [1, 3])


def parts_that_share_devices(p: ss.Planner) -> None:
    first, second, *_ = linears(p)
    p.assign(p.split(first, "o", 4), [0, 0, 1, 1])
    p.assign(p.split(second, "h", 4), [0, 1, 0, 1])


def uneven_parts_on_one_device(p: ss.Planner) -> None:
    p.assign(p.split(linears(p)[0], "o", 7), [0] * 7)


def part_by_part(p: ss.Planner) -> None:
    left, right = p.split(linears(p)[0], "o", 2)
    p.assign(right, 0)
    p.assign(left, 1)
    p.assign(list(p.split(linears(p)[1], "h", 2)), [1, 0])


def an_op_on_all_devices_among_stages(p: ss.Planner) -> None:
    p.microbatches(2)
    for stage, device in zip(p.stages(2), [0, 2], strict=True):
        p.assign(stage, [device])
    p.assign(p.split(p.find(op="linear")[-1], "o", 4), range(4))


def replicated_on_some_devices(p: ss.Planner) -> None:
    p.assign(p.replicate(linears(p)[0], 3), [2, 0, 3])


# --- ordering --------------------------------------------------------------------------------------------------------


def projections(p: ss.Planner) -> list[Op]:
    return [p.find(f"blocks.0.attention.{name}", op="linear")[0] for name in ("query", "key", "value")]


def projections_turned_around(p: ss.Planner) -> None:
    query, key, value = projections(p)
    p.order(value, before=key)
    p.order(key, before=query)


def stage_before_stage(p: ss.Planner) -> None:
    p.microbatches(2)
    first, second = p.stages(2)
    p.order(first, before=second)


LEGAL: list[tuple[Script, int]] = [
    (one_op_on_another_device, 2),
    (every_op_on_the_next_device, 4),
    (other_devices_for_the_next_op, 4),
    (parts_that_share_devices, 2),
    (uneven_parts_on_one_device, 1),
    (part_by_part, 2),
    (an_op_on_all_devices_among_stages, 4),
    (replicated_on_some_devices, 4),
    (projections_turned_around, 1),
    (stage_before_stage, 2),
    (lambda p: p.recompute("attention"), 1),
    (lambda p: p.recompute(p.find(op="attention")[0]), 1),
]


@pytest.mark.parametrize(("script", "devices"), LEGAL)
def test_unusual_scripts_are_exact(script: Script, devices: int) -> None:
    subject().assert_exact(script, devices, ss.AdamW(lr=1e-2, clip_norm=1.0))


def test_an_order_is_kept_inside_a_task() -> None:
    def rank(script: Script) -> list[int]:
        plan = subject().compile(script, 1, ss.SGD())
        entry = plan.entries["train"]
        names = [entry.graph.ops[call.base + row.offset].name
                 for block in entry.programs[0].blocks for call in block.steps if hasattr(call, "definition")
                 for row in entry.definitions[call.definition].rows]  # fmt: skip
        return [names.index(f"blocks.0.attention.{name}/mm") for name in ("query", "key", "value")]

    assert rank(lambda p: None) == sorted(rank(lambda p: None))
    assert rank(projections_turned_around) == sorted(rank(projections_turned_around), reverse=True)


# --- refusals --------------------------------------------------------------------------------------------------------


def circle(p: ss.Planner) -> None:
    query, key, value = projections(p)
    p.order(query, before=key)
    p.order(key, before=value)
    p.order(value, before=query)


def against_what_they_read(p: ss.Planner) -> None:
    up, down = linears(p)[:2]
    p.order(down, before=up)


def apart(p: ss.Planner) -> None:
    query, key, _ = projections(p)
    p.assign(query, 0)
    p.assign(key, 1)
    p.order(key, before=query)


def twice(p: ss.Planner) -> None:
    p.assign(p.split(linears(p)[0], "o", 2), [0, 1])
    p.assign(p.split(linears(p)[0], "h", 2), [1, 0])


REFUSED: list[tuple[Script, type[SuperscalerError], str]] = [
    (circle, PlanError, "is to run before"),
    (against_what_they_read, PlanError, "is read by"),
    (apart, PlanError, "share no device"),
    (lambda p: p.order(linears(p)[0]), UsageError, "says nothing"),
    (lambda p: p.order("1f1b", before=linears(p)[0]), UsageError, "before nothing"),
    (lambda p: p.order(linears(p)[0], before=("forward", 0, 0)), UsageError, "is no op"),
    (lambda p: p.order("1f1bb"), UsageError, "did you mean '1f1b'"),
    (twice, PlanError, r"is assigned to \[0, 1\] and to \[1, 0\]"),
    (lambda p: (p.assign(p.stages(2)[0], 0), p.assign(p._stages[0], 1)), PlanError, r"assigned to \[0\] and to \[1\]"),
    (lambda p: p.split(linears(p)[0], "o", 2), PlanError, "has 2 parts, which are assigned to no device"),
    (lambda p: p.replicate(linears(p)[0], 2), PlanError, "has 2 parts, which are assigned to no device"),
    (lambda p: p.assign(p.find("nothing.*"), 1), PlanError, "nothing to assign"),
    (lambda p: p.assign(p.graph.ops[-1], 1), PlanError, "which follows the forward"),
    (lambda p: p.recompute(p.graph.ops[-1]), PlanError, "which follows the forward"),
    (lambda p: p.assign(backward(p)[0], 1), PlanError, "an op of the backward, which follows the forward"),
    (lambda p: p.split(backward(p)[0], "o", 2), PlanError, "an op of the backward, which follows the forward"),
    (lambda p: p.replicate(backward(p)[0], 2), PlanError, "an op of the backward, which follows the forward"),
    (lambda p: p.split(backward(p)[0], "x", 2, axis="t"), SplitError, "its dims are"),
    (lambda p: p.split(backward(p)[0], p.dims(backward(p)[0])[0], 2, axis="t"), PlanError, "on no stage"),
    (lambda p: p.split(p.graph.ops[-1], "x", 2, axis="t"), PlanError, "an op of the optimizer, which follows"),
    (lambda p: p.assign(p.whole, [0, 1]), PlanError, "2 devices, and no axis"),
    (lambda p: p.assign(linears(p)[0], 1.0), UsageError, "1.0 is no device"),
    (lambda p: p.assign(linears(p)[0], "gpu0"), UsageError, "'gpu0' is no device"),
    (lambda p: p.assign(p.split(linears(p)[0], "o", 2)[0], 1), PlanError, "part 1 of 2 .* no device"),
    (lambda p: p.assign(p.split(linears(p)[0], "o", 3), [0, 0, 1]), PlanError, "unevenly"),
    (lambda p: p.assign(p.split(linears(p)[0], "o", 2), [0, 7]), PlanError, "device 7 is not in the cluster"),
    (lambda p: p.assign(p.split(linears(p)[0], "o", 2), ["gpu0", "gpu1"]), UsageError, "'gpu0' is no device"),
    (lambda p: p.assign(p.split(linears(p)[0], "o", 2), [0]), PlanError, "2 parts for 1 devices"),
    (lambda p: p.assign("mlp", [0]), UsageError, "'mlp' is no op"),
    (lambda p: p.split(linears(p), "o", 2), UsageError, "one by one"),
    (lambda p: p.split(linears(p)[0], "o", 2.0), UsageError, "whole number"),
    (lambda p: p.split(linears(p)[0], "o", 0), SplitError, "0 ways"),
    (lambda p: p.split(linears(p)[0], "x", 2), SplitError, "its dims are"),
    (lambda p: p.split(linears(p)[0], "o", 2, axis="t"), PlanError, "'t' of 2 ways is on no stage"),
    (lambda p: p.split_batch(2), PlanError, "'data' of 2 ways is on no stage"),
    (lambda p: p.replicate(linears(p)[0], axis="tensr"), UsageError, "no axis is called 'tensr'"),
    (lambda p: p.shard_state(["head.weigth"], axis="data"), UsageError, "no parameter"),
    (lambda p: p.reduce_early(["head.weigth"]), UsageError, "no parameter"),
    (lambda p: p.offload_state("head.weigth"), UsageError, "no parameter 'head.weigth'"),
    (lambda p: p.recompute("*.nothing"), UsageError, "nothing"),
    (lambda p: p.microbatches(2.5), UsageError, "whole number"),
    (lambda p: p.cut(p.whole.ops, p.whole.ops[:1]), PlanError, "belong to several stages"),
    (lambda p: p.cut(p.whole.ops, []), PlanError, "stage 1 has no ops"),
]


@pytest.mark.parametrize(("script", "error", "said"), REFUSED)
def test_mistakes_are_refused_by_name(script: Script, error: type[SuperscalerError], said: str) -> None:
    with pytest.raises(error, match=said) as refused:
        subject().compile(script, 2, ss.SGD())
    assert "try: " in str(refused.value)


ARGUMENTS: dict[str, Script] = {
    "devices of stages that are no groups": lambda p: p.stages(2, [0, 1]),  # type: ignore[list-item]
    "devices that there are not": lambda p: p.stages(2, [[0], [99]]),
    "no devices": lambda p: p.assign(p.find()[0], None),  # type: ignore[arg-type]
    "a truth value for a device": lambda p: p.assign(p.find()[0], True),
    "axes as one text": lambda p: p.assign(p.whole, [0, 1], axes="data"),
    "an axis that nobody declared": lambda p: p.assign(p.whole, [0, 1], axes=("data",)),
    "an axis without a name": lambda p: p.axis("", 2),
    "an axis that is no text": lambda p: p.axis(5, 2),  # type: ignore[arg-type]
    "the axis of micro-batches": lambda p: p.split_batch(2, axis="micro"),
    "the axis of all devices": lambda p: p.axis("world", 2),
    "turns along devices": lambda p: (p.axis("data", 2), p.turns(p.find(), 2, axis="data")),
    "turns of no ops": lambda p: p.turns(5, 2),  # type: ignore[arg-type]
    "turns of names": lambda p: p.turns(["mul"], 2),  # type: ignore[list-item]
    "to recompute a number": lambda p: p.recompute(5),  # type: ignore[arg-type]
    "parameters by number": lambda p: p.reduce_early([5]),  # type: ignore[list-item]
    "ops for parameters": lambda p: p.offload_state(p.find()),  # type: ignore[arg-type]
    "one number for parameters": lambda p: p.shard_state(5, axis="data"),  # type: ignore[arg-type]
    "stages of no ops": lambda p: p.cut(5),  # type: ignore[arg-type]
    "ops of the backward": lambda p: p.cut(p.graph.ops),
    "a stage of before": lambda p: p.assign([p.stages(4), p.stages(2)][0][3], 1),
    "the whole, of two stages": lambda p: (p.stages(2), p.assign(p.whole, 0)),
    "stages cut again": lambda p: (p.assign(p.stages(2)[0], 0), p.stages(3)),
    "a glob that is no text": lambda p: p.find(5),  # type: ignore[arg-type]
    "a function that is no text": lambda p: p.find(op=5),  # type: ignore[arg-type]
    "dims of several ops": lambda p: p.dims(p.find()),  # type: ignore[arg-type]
    "the size of no dim": lambda p: p.size(p.find()[0], "zz"),
    "a dim from the end": lambda p: p.prefer_output(p.find()[0], -5, 2, axis="data"),
    "no replicas": lambda p: p.replicate(p.find()[0], 0),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_arguments_of_another_kind_are_refused_with_what_to_try(what: str) -> None:
    with pytest.raises(SuperscalerError) as refused:
        subject().compile(ARGUMENTS[what], 4, ss.SGD(lr=0.1))
    assert "try: " in str(refused.value)


def test_an_op_of_another_graph_is_refused() -> None:
    other = ss.Planner(subject().traced.graph, ss.Cluster.local(1)).find(op="linear")[0]
    model, example = build("gpt", "tiny", layers=1, heads=1, hidden=4)
    foreign = ss.Planner(Subject(model, example(2, None)).traced.graph, ss.Cluster.local(1))
    del foreign.graph.op[other.name]
    with pytest.raises(PlanError, match="another graph"):
        foreign.split(other, "o", 2)


# --- the backward, addressed itself ----------------------------------------------------------------------------------


def batch_split(p: ss.Planner) -> None:
    p.split_batch(2, axis="data")
    p.assign(p.whole, [0, 1], axes=("data",))


def weight_gradients_by_rows(p: ss.Planner) -> None:
    """The forward along the batch; gradients of weights along their rows, for which both operands are gathered."""
    batch_split(p)
    for op in weight_gradients(p):
        p.split(op, "b", 2, axis="data")


def weight_gradients(p: ss.Planner) -> list[Op]:
    return [p.backward_of(op)[-1] for op in linears(p)]


def test_the_backward_is_split_as_it_says_itself_else_as_follows_from_the_forward() -> None:
    found: dict[Script, set[str]] = {}
    for script in (batch_split, weight_gradients_by_rows):
        planner = ss.Planner(with_optimizer(subject().traced.graph, ss.SGD()), ss.Cluster.local(2))
        script(planner)
        placed = place(planner.graph, planner.directives()).placed
        assert {split.dim for op in linears(planner) for _, split in placed[op.name].splits} == {"b"}
        found[script] = {split.dim for op in weight_gradients(planner) for _, split in placed[op.name].splits}
    assert found == {batch_split: {"h"}, weight_gradients_by_rows: {"b"}}
    subject().assert_exact(weight_gradients_by_rows, 2)


# --- any assignment at all -------------------------------------------------------------------------------------------


def anywhere(seed: int, devices: int, share: float, microbatches: int) -> Script:
    """Ops assigned as chance has it: whole, split, split into parts that share a device, or replicated."""

    def script(p: ss.Planner) -> None:
        dice = random.Random(seed)
        p.microbatches(microbatches)
        for op in p.find():
            if dice.random() > share:
                continue
            chosen = dice.sample(range(devices), dice.choice([n for n in (1, 2, devices) if n <= devices]))
            dims = [d for d in p.dims(op) if p.size(op, d) >= 4 * microbatches]
            if len(chosen) == 1:
                p.assign(op, chosen)
            elif dims and dice.random() < 0.8:
                turns = [*chosen, *chosen] if dice.random() < 0.1 else chosen
                p.assign(p.split(op, dice.choice(dims), len(turns)), turns)
            else:
                p.assign(p.replicate(op, len(chosen)), chosen)

    return script


drawn = st.builds(
    anywhere, st.integers(0, 2**31), st.sampled_from([1, 2, 3, 4]), st.sampled_from([0.1, 0.4, 1.0]), st.integers(1, 2)
)


def exact_or_refused(script: Script) -> None:
    try:
        subject().assert_exact(script, 4)
    except PlanError as e:
        if not any(word in e.what for word in ("room", "cycle", "nest", "cannot be split", "cannot share")):
            raise


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn)
def test_any_assignment_is_exact(script: Script) -> None:
    exact_or_refused(script)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn)
def test_any_assignment_is_exact_at_length(script: Script) -> None:
    exact_or_refused(script)
