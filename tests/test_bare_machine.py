"""A machine with torch alone (a rented GPU, say): neither ray nor ortools is needed to run a plan in one process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "ortools", "psutil", "typer", "rich", "matplotlib", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import tempfile
from pathlib import Path
import superscaler as ss
from superscaler import models

model, example = models.build("gpt", "tiny")
batch = example(4)
losses = []
for name, devices in [
    ("data_parallel:ways=1", 1),
    ("co_shard:parts=2", 1),
    ("megatron:pipeline=2,microbatches=4", 2),
    ("pipeline:stages=2,microbatches=4,schedule=1f1b", 2),
]:
    plan = ss.compile(model, batch, cluster=ss.Cluster.local(devices), plan=name, optimizer=ss.AdamW(lr=1e-3))
    with tempfile.TemporaryDirectory() as directory:
        plan.save(Path(directory) / "p.json")
        plan = ss.Plan.load(Path(directory) / "p.json")
    ss.check(plan)
    ss.simulate(plan)
    with ss.launch(plan, model, backend="inline") as job:
        losses.append(job.step(*batch))
assert max(losses) - min(losses) < 1e-4, losses
try:
    ss.launch(plan, model)
except ss.SuperscalerError as error:
    print(error)
"""


def test_neither_ray_nor_ortools_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "which is not installed\n  try: install it, or backend='inline'" in done.stdout
