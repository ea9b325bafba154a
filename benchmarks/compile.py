"""What compiling costs: CPU seconds and memory, after import, from a model to a checked plan.

    python benchmarks/compile.py [--only NAME] [--json FILE]

Rows: GPT-2 with every op split 64 ways along mixed dims by a script (and the growth from 8 to 64 devices); GPT-3 175B
on 1,024 and Llama-3-405B-sized on 16,384 devices; AlphaFold 2 as published, dap 8 × data 16, batch 128; the largest
Swin of the co-shard experiment on 32 devices.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "compile.json"


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def mixed(ways: int) -> Callable[..., None]:
    """A script that splits every op ``ways`` ways: linears in turn by output and by batch, the vocabulary, heads."""

    def plan(p) -> None:  # type: ignore[no-untyped-def]
        devices = range(ways)
        dims = {"attention": "b", "gather": "v"}
        for i, op in enumerate(p.find()):
            family = p.family(op)
            dim = dims.get(family, "b" if i % 2 else "o")
            found = (
                dim
                if dim in p.dims(op) and p.size(op, dim) >= ways
                else next((d for d in p.dims(op) if p.size(op, d) >= ways), None)
            )
            if found is not None:
                p.assign(p.split(op, found, ways), devices)

    return plan


def gpt2(ways: int) -> dict[str, float]:
    """12 layers, hidden 768, batch 64: one script, every op split ``ways`` ways."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    import superscaler as ss
    from superscaler.models import build
    from superscaler.trace import trace  # noqa: F401  (imports are not what is measured)

    torch.set_num_threads(1)
    start = cpu()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, example = build("gpt", "gpt2-small")
        args = example(64, 1024)
    plan = ss.compile(
        model,
        args,
        cluster=ss.Cluster.preset("a100", devices=ways),
        plan=mixed(ways),
        optimizer=ss.AdamW(),
        evaluate=False,
    )
    return _figures(plan, start)


def megatron_175b(data: int = 8, batch: int = 1024) -> dict[str, float]:
    """GPT-3 175B: tensor 8 × pipeline 16 × data, bf16, micro-batches of one sequence per data-parallel rank."""
    return _huge("gpt", "gpt3-175b", 8, 16, data, batch, 2048)


def llama_405b() -> dict[str, float]:
    """The shapes of Llama-3 405B (Grattafiori et al. 2024, table 3): tensor 8 × pipeline 16 × data 128, 2,048 sequences
    of 8,192 tokens, bf16. On H200: without ZeRO a device needs 111 GiB."""
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import LlamaConfig, LlamaForCausalLM

    import superscaler as ss

    start, wall = cpu(), time.perf_counter()
    config = LlamaConfig(
        vocab_size=128256, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
        num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0, use_cache=False,
    )  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: nn.Module = LlamaForCausalLM(config)
        ids = torch.zeros(2048, 8192, dtype=torch.long)
    script = ss.plans.recompute(ss.plans.megatron(data=128, tensor=8, pipeline=16, microbatches=16))
    plan = ss.compile(
        model, (), {"input_ids": ids, "labels": ids}, cluster=ss.Cluster.preset("h200", devices=16384), plan=script,
        optimizer=ss.AdamW(clip_norm=1.0), loss=lambda output: output.loss, dtype="bf16", evaluate=False,
        progress=lambda m: print(f"    {time.perf_counter() - wall:6.1f} s  {m}", file=sys.stderr),
    )  # fmt: skip
    return {"wall_seconds": time.perf_counter() - wall, **_figures(plan, start)}


def _huge(name: str, preset: str, tensor: int, pipeline: int, data: int, batch: int, seq: int) -> dict[str, float]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    import superscaler as ss
    from superscaler.models import build

    start, wall = cpu(), time.perf_counter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, example = build(name, preset)
        args = example(batch, seq)
    script = ss.plans.recompute(ss.plans.megatron(data=data, tensor=tensor, pipeline=pipeline, microbatches=128))
    devices = tensor * pipeline * data
    plan = ss.compile(
        model, args, cluster=ss.Cluster.preset("h100", devices=devices), plan=script,
        optimizer=ss.AdamW(clip_norm=1.0), dtype="bf16", evaluate=False,
        progress=lambda m: print(f"    {time.perf_counter() - wall:6.1f} s  {m}", file=sys.stderr),
    )  # fmt: skip
    return {"wall_seconds": time.perf_counter() - wall, **_figures(plan, start)}


def published(name: str, preset: str, plan: str, devices: int, batch: int) -> dict[str, float]:
    """A model at a published size under a named plan, bf16, on A100s."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    import superscaler as ss
    from superscaler.models import build

    start, wall = cpu(), time.perf_counter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, example = build(name, preset)
        args = example(batch)
    found = ss.compile(
        model, args, cluster=ss.Cluster.preset("a100", devices=devices), plan=plan, optimizer=ss.AdamW(), dtype="bf16",
        evaluate=False, progress=lambda m: print(f"    {time.perf_counter() - wall:6.1f} s  {m}", file=sys.stderr),
    )  # fmt: skip
    return {"wall_seconds": time.perf_counter() - wall, **_figures(found, start)}


def _figures(plan: Any, start: float) -> dict[str, float]:
    """Of a plan made since ``start`` (seconds of this process's CPU)."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"cpu_seconds": cpu() - start, "rss_gib": rss, "plan_mb": _size(plan)}


def _size(plan: Any) -> float:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.save(path)
        return path.stat().st_size / 1e6


CASES: dict[str, Callable[[], dict[str, float]]] = {
    "gpt2-mixed-8": lambda: gpt2(8),
    "gpt2-mixed-64": lambda: gpt2(64),
    "gpt3-175b-1024": megatron_175b,
    "gpt3-175b-16384": lambda: megatron_175b(data=128, batch=128 * 128),
    "llama3-405b-16384": llama_405b,
    "alphafold2-128": lambda: published("alphafold2", "published", "recompute:ops=all+dap:ways=8,data=16", 128, 128),
    "swin-coshard-32": lambda: published(
        "swin", "coshard-56", "co_shard:parts=4,small=64,tensor=8,pipeline=4,microbatches=256", 32, 256
    ),
}
BARS = {
    "gpt2-mixed-64": "cpu_seconds <= 5; <= 1.5 x 8 devices",
    "gpt3-175b-1024": "wall <= 60 s, rss <= 4 GiB, plan <= 20 MB",
    "gpt3-175b-16384": "wall <= 2 x that of 1,024",
    "llama3-405b-16384": "compiles, checked",
    "alphafold2-128": "<= 30 s, checked",
    "swin-coshard-32": "<= 30 s, checked",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--inside", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.inside:
        import superscaler.api
        import superscaler.trace  # noqa: F401

        print(json.dumps(CASES[options.inside]()))
        return
    rounds: dict[str, list[dict[str, float]]] = {}
    names = [options.only] if options.only else list(CASES)
    for _ in range(options.rounds):
        for name in names:
            done = subprocess.run([sys.executable, __file__, "--inside", name], stdout=subprocess.PIPE, check=True)
            rounds.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'case':20} {'cpu s':>8} {'wall s':>8} {'GiB':>6} {'MB':>7}  bar")
    for name, found in rounds.items():
        middle = sorted(found, key=lambda r: r["cpu_seconds"])[len(found) // 2]
        wall = middle.get("wall_seconds", float("nan"))
        print(f"{name:20} {middle['cpu_seconds']:8.2f} {wall:8.2f} {middle['rss_gib']:6.2f} "
              f"{middle['plan_mb']:7.2f}  {BARS.get(name, '')}")  # fmt: skip
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps({"machine": platform.platform(), "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
