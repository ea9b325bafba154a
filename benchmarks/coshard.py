"""What co-shard saves: peak memory and step time with it and without, on one worker.

    python benchmarks/coshard.py [--only NAME] [--rounds N] [--json FILE] [--add]

Cases: Swin blocks at window 48, and a GPT at 8k tokens whose attention is written out (not one fused op). Peak memory
is what a worker measures of its state, its arena and the workspace of its largest task; state is taken off. Each
measurement runs in a process of its own, the two plans in turn; ``--add`` keeps the rounds that FILE has.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

RESULTS = Path(__file__).parent / "results" / "coshard.json"
PARTS = 8
Rounds = dict[str, dict[str, list[dict[str, float]]]]  # case -> plan -> what each round measured


class UnfusedAttention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.project = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, h = x.shape

        def split(t: torch.Tensor) -> torch.Tensor:
            return t.view(b, s, self.heads, h // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = torch.softmax(q @ k.transpose(2, 3) * (h // self.heads) ** -0.5, dim=-1)
        return self.project((weights @ v).transpose(1, 2).reshape(b, s, h))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = UnfusedAttention(hidden, heads)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class LongGPT(nn.Module):
    """A small GPT for long sequences, bidirectional, attention written out."""

    def __init__(self, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.head = nn.Linear(hidden, 256, bias=False)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def gpt(tokens: int) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Heads of 128, as in GPT-3."""
    ids = torch.randint(0, 256, (1, tokens))
    return LongGPT(1024, 8, 1), (ids, ids.roll(-1, 1))


def swin() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Two blocks of the first stage of the smallest size of the co-shard experiment, at its window of 48, on a smaller
    image: four windows."""
    from superscaler.models import build

    model, example = build("swin", "coshard-32", image=384, depths=(2,), heads=(16,), classes=16)
    return model, example(1, None)


CASES = {"gpt-8k": lambda: gpt(8192), "gpt-2k": lambda: gpt(2048), "swin-window-48": swin}
PLANS = {"co_shard": f"co_shard:parts={PARTS}", "without": "data_parallel:ways=1"}


def measure(case: str, plan: str) -> dict[str, float]:
    import superscaler as ss

    torch.manual_seed(0)
    model, args = CASES[case]()
    compiled = ss.compile(model, args, cluster=ss.Cluster.local(1, memory=20), plan=PLANS[plan], evaluate=False)
    with ss.launch(compiled, model, backend="inline") as job:
        found = job.measure_memory(*args)[0]  # the first step, too: what follows finds warm memory
        times: list[float] = []
        for _ in range(2):
            start = time.perf_counter()
            job.step(*args)
            times.append(time.perf_counter() - start)
    program = compiled.entries["train"].programs[0]
    return {"seconds": statistics.median(times), "predicted": program.peak, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep the rounds that the file has")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(*options.inside)))
        return
    rounds: Rounds = json.loads(options.json.read_text())["rounds"] if options.add and options.json.exists() else {}
    for case in [options.only] if options.only else ["swin-window-48", "gpt-8k"]:
        for _ in range(options.rounds):
            for plan in PLANS:
                done = subprocess.run(
                    [sys.executable, __file__, "--inside", case, plan], stdout=subprocess.PIPE, check=True
                )
                rounds.setdefault(case, {}).setdefault(plan, []).append(json.loads(done.stdout.splitlines()[-1]))
    report(rounds)
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps({"machine": platform.platform(), "rounds": rounds}, indent=1) + "\n")


def report(rounds: Rounds) -> None:
    print(f"{'case':16} {'plan':9} {'peak - state MiB':>17} {'predicted/measured':>19} {'seconds':>8}")
    for case, plans in rounds.items():
        less: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for plan, found in plans.items():
            less[plan] = statistics.median(f["peak"] - f["state"] for f in found)
            seconds[plan] = statistics.median(f["seconds"] for f in found)
            ratio = statistics.median(f["predicted"] / f["peak"] for f in found)
            print(f"{case:16} {plan:9} {less[plan] / 2**20:17.1f} {ratio:19.3f} {seconds[plan]:8.2f}")
        saved, slower = less["without"] / less["co_shard"], seconds["co_shard"] / seconds["without"]
        print(f"{case:16} saved {saved:.2f}x (bar >= 2.5x), time {slower:.2f}x (bar <= 1.15x), predicted within 5 %")


if __name__ == "__main__":
    main()
