"""Draws ``docs/timeline.png``: GPT-2 medium on 8 H100, compiled without a GPU in sight.

python docs/draw_timeline.py
"""

from __future__ import annotations

from pathlib import Path

import superscaler as ss
from superscaler import models
from superscaler.trace.building import without_memory
from superscaler.viz.plan_timeline import chart
from superscaler.viz.png import write_png

PLAN = "megatron:tensor=2,pipeline=4,microbatches=8,schedule=solve"


def main(path: Path) -> ss.Plan:
    """Compile the plan and write the picture."""
    model, example = without_memory(lambda: models.build("gpt", "gpt2-medium"))
    cluster = ss.Cluster.preset("h100", devices=8)
    plan = ss.compile(model, example(32), cluster=cluster, plan=PLAN, optimizer=ss.AdamW(), evaluate=False)
    write_png(chart(ss.simulate(plan), title=f"GPT-2 medium on 8 H100: {PLAN}"), path)
    return plan


if __name__ == "__main__":
    print(main(Path(__file__).parent / "timeline.png"))
