"""Co-shard: what is large is made part by part and again in the backward, what is small once; exactly the same."""

from __future__ import annotations

import pytest
import torch

import superscaler as ss
from benchmarks.coshard import LongGPT
from superscaler.errors import SuperscalerError
from superscaler.ir.program import Call, Program
from superscaler.models import build
from superscaler.transforms.usage import at_of, reads
from tests.cases import slow
from tests.exact import assert_exact
from tests.test_exactness import CLIPPED

Args = tuple[torch.Tensor, ...]


def unfused(batch: int = 1, tokens: int = 64) -> tuple[LongGPT, Args]:
    """Attention written out, on more tokens than the hidden size: the scores are the largest results by far."""
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (batch, tokens))
    return LongGPT(24, 4, 2), (ids, ids.roll(-1, 1))


def shifted() -> tuple[torch.nn.Module, Args]:
    """Windows with a learned bias, every other layer shifted and masked."""
    torch.manual_seed(0)
    model, example = build("swin", "tiny", hidden="16", window="4", heads="4,4")
    return model, example(2, None)


@pytest.mark.parametrize(("plan", "devices"), [
    ("co_shard:parts=4", 1),
    slow("co_shard:parts=3", 1),
    ("co_shard:parts=2,small=1", 1),
    slow("co_shard:parts=2,small=1000000", 1),
    ("co_shard:parts=2,microbatches=3", 1),
    ("co_shard:parts=2,tensor=2,data=2", 4),
    ("co_shard:parts=2,tensor=2,pipeline=2,microbatches=2", 4),
    ("co_shard:parts=2,modules=blocks.1*", 1),
])  # fmt: skip
def test_scores_in_parts_are_exact(plan: str, devices: int) -> None:
    model, args = unfused(batch=6, tokens=20)
    assert_exact(model, args, plan, devices, optimizer=CLIPPED)


@pytest.mark.parametrize(
    "plan", [slow("co_shard:parts=4"), "co_shard:parts=3,small=1", "co_shard:parts=2,microbatches=2"]
)
def test_windows_in_parts_are_exact(plan: str) -> None:
    model, args = shifted()
    assert_exact(model, args, plan, 1, optimizer=CLIPPED)


def program(plan: str) -> tuple[ss.Plan, Program]:
    model, args = unfused(tokens=256)
    compiled = ss.compile(model, args, cluster=ss.Cluster.local(1), plan=plan, evaluate=False)
    return compiled, compiled.entries["train"].programs[0]


def runs(plan: ss.Plan, target: str) -> dict[str, int]:
    """How often each op of a target runs in a step."""
    entry = plan.entries["train"]
    found: dict[str, int] = {}
    for block in entry.programs[0].blocks:
        for call in block.steps:
            for row in entry.definitions[call.definition].rows if isinstance(call, Call) else ():
                op = entry.graph.ops[call.base + row.offset]
                if op.target == target:
                    found[op.name] = found.get(op.name, 0) + 1
    return found


def test_what_is_large_is_made_again_part_by_part_and_what_is_small_once() -> None:
    plan, _ = program("co_shard:parts=4")
    forward = {n: count for n, count in runs(plan, "aten.bmm.default").items() if "backward" not in n}
    assert {n: c for n, c in forward.items() if n.endswith("/bmm")} == dict.fromkeys(
        ["blocks.0.attention/bmm", "blocks.1.attention/bmm"], 8
    )  # the scores, in four parts, forward and again
    assert {n: c for n, c in forward.items() if n.endswith("/bmm_1")} == dict.fromkeys(
        ["blocks.0.attention/bmm_1", "blocks.1.attention/bmm_1"], 4
    )  # their products with the values, in four parts, once
    assert set(runs(plan, "aten.mm.default").values()) == {1}


def test_a_part_gives_on_only_what_is_read_later_in_its_turn() -> None:
    _, found = program("co_shard:parts=4")
    for block in found.blocks:
        outside = {v for other in found.blocks if other is not block for step in other.steps for v in reads(step)}
        outside |= {*found.outputs.values(), *found.gradients.values()}
        for number, step in enumerate(block.steps):
            later = [s for s in block.steps[number + 1 :] if not at_of(step) or at_of(s) in ((), at_of(step))]
            read = {v for s in later for v in reads(s)}
            assert not isinstance(step, Call) or set(step.outs) <= read | outside


def test_it_holds_less() -> None:
    (_, whole), (_, parts) = program("data_parallel:ways=1"), program("co_shard:parts=4")
    assert (whole.peak - parts.peak) > 0.5 * whole.peak


def test_sums_of_large_gradients_take_turns_with_them() -> None:
    model, args = shifted()
    compiled = ss.compile(model, args, cluster=ss.Cluster.local(1), plan="co_shard:parts=4", evaluate=False)
    graph = compiled.entries["train"].graph
    scores = {graph.tensor[o].shape for op in graph.ops if op.target == "aten._softmax.default" for o in op.outputs}
    whole = {
        value.tensor
        for value in compiled.entries["train"].programs[0].values
        if graph.tensor[value.tensor].shape in scores and not value.over
    }
    assert not whole


@pytest.mark.parametrize(("plan", "says"), [
    ("co_shard:parts=2,modules=nowhere.*", "modules='nowhere.\\*' matches no linear layer"),
    ("co_shard:parts=8", "attention of 4 heads cannot be split 8 ways"),
    ("co_shard:parts=2,small=0", "small must be at least 1"),
])  # fmt: skip
def test_what_does_not_apply_is_refused(plan: str, says: str) -> None:
    model, args = unfused(tokens=128)
    with pytest.raises(SuperscalerError, match=says):
        ss.compile(model, args, cluster=ss.Cluster.local(1), plan=plan)


def test_a_model_without_repeated_layers_is_told_so() -> None:
    with pytest.raises(SuperscalerError, match="no repeated layers"):
        ss.compile(torch.nn.Linear(4, 1), (torch.randn(4, 4),), cluster=ss.Cluster.local(1), plan="co_shard",
                   loss=torch.sum)  # fmt: skip
