"""Each of SuperScaler's plans on each model that it applies to, on 4 and 8 workers: exact as DESIGN §6.

At sizes that nothing divides too; and with dropout on, equal to the plan of one worker.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

import superscaler as ss
from superscaler.models import build
from tests.exact import Subject, compare

ADAM = ss.AdamW(lr=1e-2, clip_norm=1.0)
ONE = "data_parallel:ways=1"
DEPTH = {"residues": 8, "sequences": 8, "extra_sequences": 8}
SIZES: dict[str, dict[str, dict[str, object]]] = {
    "gpt": {
        "even": {"layers": 8, "heads": 6, "hidden": 48},
        "odd": {"layers": 5, "heads": 7, "hidden": 35, "vocab": 53, "context": 13},
        "dropout": {"dropout": 0.2, "heads": 6, "hidden": 48},
    },
    "swin": {
        "even": {"hidden": 24, "heads": (6, 12)},
        "odd": {"image": 30, "patch": 2, "window": 5, "hidden": 18, "depths": (3, 1), "heads": (9, 9), "classes": 7},
        "dropout": {"dropout": 0.2, "drop_path": 0.2, "hidden": 24, "heads": (6, 12)},
    },
    "t5": {
        "even": {"layers": 4, "heads": 6},
        "odd": {"layers": 3, "vocab": 251, "context": 13, "hidden": 27, "heads": 7, "head_size": 9, "ffn": 37},
        "dropout": {"dropout": 0.2, "heads": 6},
    },
    "alphafold2": {
        "even": {**DEPTH, "blocks": 4, "pair_heads": 4},
        "odd": {
            "residues": 9, "sequences": 5, "extra_sequences": 7, "blocks": 3, "msa_heads": 5, "msa_head_size": 3,
            "pair_heads": 5,
        },
        "dropout": {**DEPTH, "dropout": 0.2, "pair_dropout": 0.2, "pair_heads": 4},
    },
}  # fmt: skip
BATCH = {"even": 8, "odd": 9, "dropout": 8}
ZERO = [
    ("zero:level=1,data=4", 4),
    ("zero:level=2,data=2,tensor=2,microbatches=2", 4),
    ("zero:level=3,data=2,replicas=2,tensor=2,offload=true", 8),
]
CO_SHARD = [
    ("co_shard:parts=2,data=4", 4),
    ("co_shard:parts=3,tensor=2,pipeline=2,microbatches=3", 4),
    ("co_shard:parts=2,data=2,tensor=2,pipeline=2,microbatches=2", 8),
]
INTERLACED = [
    ("interlaced:stages=4,microbatches=5", 4),
    ("interlaced:stages=2,tensor=2,microbatches=4", 4),
    ("interlaced:stages=4,tensor=2,microbatches=3", 8),
]
PLANS: dict[str, list[tuple[str, int]]] = {
    "gpt": [*ZERO, *CO_SHARD, *INTERLACED],
    "swin": [*ZERO, *CO_SHARD],
    "t5": [*ZERO, *CO_SHARD, *INTERLACED],
    "alphafold2": [
        *ZERO[:1],
        ("three_f_one_b:stages=4,microbatches=6", 4),
        ("dap:ways=4", 4),
        ("dap:ways=2,data=2", 4),
        ("dap:ways=4,data=2", 8),
        ("co_shard:parts=2,tensor=2,pipeline=2,microbatches=2", 4),
    ],
}


@lru_cache(maxsize=1)
def subject(model: str, sizes: str) -> Subject:
    torch.manual_seed(0)
    module, example = build(model, "tiny", **SIZES[model][sizes])
    return Subject(module, example(BATCH[sizes], None))


def cases(*sizes: str) -> list[tuple[str, str, str, int]]:
    return [(model, size, plan, n) for size in sizes for model in PLANS for plan, n in PLANS[model]]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes", "plan", "devices"), cases("even", "odd"))
def test_exact(model: str, sizes: str, plan: str, devices: int) -> None:
    subject(model, sizes).assert_exact(plan, devices, ADAM)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes", "plan", "devices"), cases("dropout"))
def test_with_dropout_every_plan_equals_that_of_one_worker(model: str, sizes: str, plan: str, devices: int) -> None:
    found = subject(model, sizes)
    compare(found.run(found.compile(plan, devices, ADAM)), of_one(model, sizes), ADAM)


@lru_cache(maxsize=1)
def of_one(model: str, sizes: str):  # type: ignore[no-untyped-def]
    found = subject(model, sizes)
    return found.run(found.compile(ONE, 1, ADAM))
