"""What a plan says of itself is what it does: places, readers, gradients, splits, exchanges, and why."""

from __future__ import annotations

from functools import lru_cache

import msgspec
import pytest
import torch

import superscaler as ss
from superscaler.errors import UsageError
from superscaler.ir.explain import Explanation, explain
from superscaler.models import build


@lru_cache(maxsize=2)
def plan(script: str = "megatron:data=2,tensor=2,pipeline=2,microbatches=2", devices: int = 8) -> ss.Plan:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    return ss.compile(
        model, example(4, 16), cluster=ss.Cluster.local(devices), plan=script, optimizer=ss.AdamW(), evaluate=False
    )


def section(found: Explanation, name: str) -> list[str]:
    return list(next((s.lines for s in found.sections if s.name == name), ()))


def test_a_parameter() -> None:
    found = explain(plan(), "blocks.0.mlp.up.weight")
    assert found.title == "parameter blocks.0.mlp.up.weight: [128, 32] of float32, 16 KiB"
    lives = section(found, "lives")
    assert lives[1:] == ["workers 0, 2: [0:64; 0:32] (8 KiB each)", "workers 1, 3: [64:128; 0:32] (8 KiB each)"]
    assert any(
        "forward0, per micro-batch: blocks.0.mlp.up/permute reads it" in line for line in section(found, "is read")
    )
    gradient = section(found, "its gradient")
    assert any("added to the sum over micro-batches" in line for line in gradient)
    (reduced,) = (line for line in gradient if "all-reduced" in line)
    assert "over workers 0, 2" in reduced
    assert "blocks.0.mlp.up/backward.mm_1 leaves terms of a sum, blocks.0.mlp.up.weight/adamw needs it so" in reduced
    assert any("becomes the new content" in line for line in section(found, "its update"))
    assert len(section(found, "beside it")) == 2


def test_a_tied_parameter_goes_where_it_is_read() -> None:
    found = explain(plan(), "head.weight")
    assert found.title.startswith("parameter embedding.weight")
    assert any("sent to workers 4-7, which lack it" in line for line in section(found, "is read"))


def test_an_op() -> None:
    found = explain(plan(), "blocks.0.attention/attention")
    assert "forward op" in found.title
    assert section(found, "runs") == ["on workers 0-3, stage 0, per micro-batch: in the forward pass"]
    assert section(found, "is split") == [
        "along 'data': its dim 'b' of 4 in 2 parts, following what it reads or what reads it",
        "along 'tensor': its dim 'h' of 4 in 2 parts, as the plan prefers",
        "along 'micro': its dim 'b' of 4 in 2 parts, following what it reads or what reads it",
    ]


def test_what_chose_a_split() -> None:
    """A script, what is around it, or what is cheapest; an op that every device computes as the script says, too."""

    def script(p: ss.Planner) -> None:
        first, second, *_ = p.of_family("matmul")
        p.assign(p.whole, range(2), axes=("tensor",))
        p.split(first, "o", 2, axis="tensor")
        p.replicate(second, axis="tensor")

    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    made = ss.compile(model, example(4, 16), cluster=ss.Cluster.local(2), plan=script, evaluate=False)
    graph = made.entries["train"].graph
    products = [op.name for op in graph.ops if op.phase == "forward" and op.target == "aten.mm.default"]
    said = {op.name: " ".join(section(explain(made, op.name), "is split")) for op in graph.ops}
    assert said[products[0]].endswith("as the plan says")
    assert said[products[1]].startswith("along 'tensor': every part computes all of it")
    assert said[products[1]].endswith("as the plan says")
    assert any(text.endswith("following what it reads or what reads it") for text in said.values())
    assert any(text.endswith("which moves the fewest bytes") for text in said.values())


def test_what_is_computed_again() -> None:
    found = explain(plan("recompute:ops=all+data_parallel:ways=2", 2), "blocks.0.mlp.up/mm")
    assert (
        section(found, "runs")[1]
        == "on workers 0-1, stage 0, once a step: computed again for the backward pass, not kept"
    )


def test_a_module() -> None:
    found = explain(plan(), "blocks.0.mlp")
    assert found.title.startswith("module blocks.0.mlp: 4 parameters")
    assert section(found, "runs")[0].startswith("workers 0-3: ")


@pytest.mark.parametrize("name", ["5", "worker 5", "worker:5"])
def test_a_worker(name: str) -> None:
    found = explain(plan(), name)
    assert found.title == "worker 5 of 8: a cpu with 8 GiB"
    assert "on mesh mesh1: data 0, tensor 1" in section(found, "stands")
    assert "runs the same program as workers 4, 6, 7" in section(found, "stands")
    assert any("of optimizer state" in line for line in section(found, "holds"))
    assert any("2 forward tasks" in line for line in section(found, "does"))
    assert any("reduce_scatter with workers 4-5" in line for line in section(found, "exchanges"))


def test_the_whole_plan_says_what_can_be_asked() -> None:
    found = explain(plan())
    assert found.title == str(plan())
    assert "a worker: 0 to 7" in section(found, "ask about")


def test_everything_that_can_be_asked_has_an_answer() -> None:
    graph = plan().entries["train"].graph
    for name in [*(t.name for t in plan().state), *(op.name for op in graph.ops), *map(str, range(8))]:
        found = explain(plan(), name)
        assert found.sections
        assert msgspec.json.decode(msgspec.json.encode(found), type=Explanation) == found
        assert found.title in str(found)


@pytest.mark.parametrize(("name", "hint"), [("8", "0 to 7"), ("blocks.0.mlp.up.wieght", "blocks.0.mlp.up.weight")])
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        explain(plan(), name)
    assert hint in str(error.value)
