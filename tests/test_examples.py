"""``examples/train_gpt.py``, which ``make demo`` runs: here for two steps of a small model, in one process."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import superscaler as ss
from superscaler import models

ROOT = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_follows_plain_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = load(ROOT / "examples" / "train_gpt.py")
    worst = demo.main(steps=3, backend="inline", output=tmp_path, preset="tiny", batch=8)
    assert worst < 1e-5
    said = capsys.readouterr().out
    assert "predicted" in said
    assert "measured" in said
    assert (tmp_path / "gpt.plan.json").exists()
    assert (tmp_path / "timeline.png").exists()
    assert (tmp_path / "checkpoint" / "model.safetensors.index.json").exists()


def test_every_example_is_run_by_a_test() -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_example*.py"))
    for example in (ROOT / "examples").glob("*.py"):
        assert example.stem in tests, f"no test runs {example.name}"


def test_the_readme_and_the_makefile_agree() -> None:
    """The commands that the README gives are there, and ``.ci/run`` runs its test command."""
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert f"\n{target}: " in makefile
    assert " make test " in (ROOT / ".ci" / "run").read_text()


def test_every_command_of_the_readme_is_one() -> None:
    from typer.main import get_command

    from superscaler.cli.app import superscaler_app

    commands = get_command(superscaler_app()).commands  # type: ignore[attr-defined]
    readme = (ROOT / "README.md").read_text()
    for line in readme.splitlines():
        if line.startswith("superscaler "):
            assert line.split()[1] in commands, line
    assert all(f"superscaler {name}" in readme for name in commands)


def test_the_script_of_the_readme_is_a_plan() -> None:
    """And an exact one: the loss of the first step is that of the model."""
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "my_plan" in b
    )
    names: dict[str, Any] = {"ss": ss}
    exec(block, names)
    torch.manual_seed(0)
    model, example = models.build("gpt", "tiny", layers=4)
    batch = example(16)
    plan = ss.compile(model, batch, cluster=ss.Cluster.local(8), plan=names["my_plan"], evaluate=False)
    assert plan.entries["train"].certificate.status in ("optimal", "feasible")
    with ss.launch(plan, model, backend="inline") as job:
        assert abs(job.step(*batch) - model(*batch).item()) < 1e-5
