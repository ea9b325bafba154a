"""What the check catches, and what it costs.

    python benchmarks/check.py [--each N] [--large] [--json FILE]

Faults of every class are put into plans of all kinds (a tiny GPT under data, tensor, sequence and pipeline parallelism
and recomputation, with their products); each must be refused, and named by a kind that fits. The plans themselves must
pass. Then seconds per 10,000 tasks, CPU time of this process: ``--large`` compiles GPT-3 175B for 1,024 devices and a
model of Llama-3 8B's shapes for 512 first.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "ir" / "check")]

import faults  # noqa: E402
from compiled import KINDS, compiled  # noqa: E402

from superscaler.errors import CheckError  # noqa: E402
from superscaler.ir.check import Fault, check  # noqa: E402
from superscaler.ir.plan import Plan  # noqa: E402

RESULTS = HERE / "results" / "check.json"
BARS = {"caught": "100 %", "named": "100 %", "false alarms": "0", "per 10,000 tasks": "<= 1 s", "llama": "<= 10 s"}


def verdict(plan: Plan) -> str:
    """The kind of fault that the check names, "" if it finds none."""
    try:
        check(plan)
    except Fault as error:
        return error.kind
    except CheckError:
        return "unnamed"
    return ""


def catch(each: int) -> dict[str, Any]:
    """Inject faults into plans of all kinds: per class, how many, how many caught, and by which name."""
    faults.load_all()
    rows: dict[str, Counter[str]] = {name: Counter() for name in faults.CLASSES}
    alarms = 0
    for kind in KINDS:
        plan = compiled(*kind)
        alarms += verdict(plan) != ""
        for fault_class, broken in faults.injected(plan, seed=7, each=each):
            found = verdict(broken)
            row = rows[fault_class.name]
            row["injected"] += 1
            row["caught"] += found != ""
            row["named"] += found in fault_class.named
            row[f"as {found or 'nothing'}"] += 1
    return {"plans": len(KINDS), "false alarms": alarms, "classes": {name: dict(row) for name, row in rows.items()}}


def report_faults(found: dict[str, Any]) -> None:
    print(f"{'fault':44} {'bug':>3} {'injected':>8} {'caught':>7} {'named':>6}  as")
    total: Counter[str] = Counter()
    for name, row in found["classes"].items():
        total.update({key: row.get(key, 0) for key in ("injected", "caught", "named")})
        kinds = ", ".join(f"{k[3:]} {n}" for k, n in row.items() if k.startswith("as "))
        bug = faults.CLASSES[name].bug or ""
        counts = [row.get(key, 0) for key in ("injected", "caught", "named")]
        print(f"{name:44} {bug:>3} {counts[0]:>8} {counts[1]:>7} {counts[2]:>6}  {kinds}")
    print(f"{'all':44} {'':>3} {total['injected']:>8} {total['caught']:>7} {total['named']:>6}")
    print(f"false alarms on {found['plans']} valid plans: {found['false alarms']}")
    found["total"] = dict(total)


def seconds(plan: Plan, rounds: int = 5) -> float:
    """Median CPU seconds of a check."""
    times: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        check(plan)
        times.append(time.process_time() - start)
    return statistics.median(times)


def long_pipeline() -> Plan:
    """Many tasks: a tiny GPT in 4 stages with 128 micro-batches."""
    import torch

    import superscaler as ss
    from superscaler.models import build

    torch.manual_seed(0)
    model, example = build("gpt", "tiny", layers=8)
    return ss.compile(
        model, example(256), cluster=ss.Cluster.local(4), plan="pipeline:stages=4,microbatches=128",
        optimizer=ss.AdamW(clip_norm=1.0), evaluate=False,
    )  # fmt: skip


def gpt3() -> Plan:
    """GPT-3 175B: tensor 8 × pipeline 16 × data 8, 128 micro-batches, recomputation."""
    import superscaler as ss
    from superscaler.models import build

    with _fake():
        model, example = build("gpt", "gpt3-175b")
        args = example(1024, 2048)
    script = ss.plans.recompute(ss.plans.megatron(data=8, tensor=8, pipeline=16, microbatches=128))
    return ss.compile(
        model, args, cluster=ss.Cluster.preset("h100", devices=1024), plan=script,
        optimizer=ss.AdamW(clip_norm=1.0), dtype="bf16", evaluate=False,
    )  # fmt: skip


def llama() -> Plan:
    """The shapes of Llama-3 8B, data-parallel on 512 devices: what TrainVerify checks in 685 s on 32 cores."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import superscaler as ss

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0, use_cache=False,
    )  # fmt: skip
    with _fake():
        model, ids = LlamaForCausalLM(config), torch.zeros(512, 2048, dtype=torch.long)
    return ss.compile(
        model, (), {"input_ids": ids, "labels": ids}, cluster=ss.Cluster.preset("h100", devices=512, memory=1024),
        plan="data_parallel:ways=512", optimizer=ss.AdamW(clip_norm=1.0), loss=lambda output: output.loss,
        dtype="bf16", evaluate=False,
    )  # fmt: skip


def _fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def cost(*, large: bool) -> dict[str, dict[str, float]]:
    """Per plan: tasks (items of all Programs), devices, CPU seconds, and those per 10,000 tasks."""
    plans = {"gpt tiny, 4 stages, 128 micro-batches": long_pipeline}
    if large:
        plans |= {"gpt3-175b on 1,024": gpt3, "llama-3 8b shapes, dp 512": llama}
    rows: dict[str, dict[str, float]] = {}
    print(f"\n{'plan':40} {'devices':>8} {'tasks':>7} {'posts':>9} {'cpu s':>8} {'s / 10,000 tasks':>17}")
    for name, make in plans.items():
        plan = make()
        tasks, taken = check(plan).tasks, seconds(plan)
        posts = sum(entry.communications for entry in check(plan).entries.values())
        rows[name] = {"devices": plan.workers, "tasks": tasks, "posts": posts, "seconds": taken}
        if tasks >= 1000:  # below that, reading the Graph is what takes the time
            rows[name]["per_10000"] = taken * 10_000 / tasks
        each = f"{rows[name]['per_10000']:.3f}" if "per_10000" in rows[name] else "-"
        print(f"{name:40} {plan.workers:>8,} {tasks:>7,} {posts:>9,} {taken:>8.3f} {each:>17}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=4, help="faults of each class in each plan")
    parser.add_argument("--large", action="store_true", help="time the check of GPT-3 175B and of Llama-3 8B's shapes")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = catch(options.each)
    report_faults(found)
    found["cost"] = cost(large=options.large)
    found["bars"] = BARS
    found["machine"] = {"python": platform.python_version(), "processor": platform.machine()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
