"""What is imported when: a saved plan is checked, simulated and shown without torch, ray or ortools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ir.plans_by_hand_more import pipelined

HEAVY = ("torch", "ray", "ortools", "numpy", "matplotlib", "networkx", "transformers")


def imported(script: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after ``script``."""
    probe = f"{script}\nimport sys\nprint('\\n' + ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plans") / "p.json"
    pipelined().save(file)
    return file


def command(*arguments: str | Path) -> str:
    words = [str(a) for a in arguments]
    return (
        "from superscaler.cli.app import superscaler_app\nfrom superscaler.cli.outcome import execute\n"
        f"assert execute(superscaler_app(), {words!r}, program='superscaler') == 0"
    )


@pytest.mark.parametrize("name", ["check", "simulate", "show", "explain"])
def test_a_saved_plan_is_looked_at_without_anything_heavy(name: str, plan_file: Path) -> None:
    assert imported(command(name, plan_file)) == set()


@pytest.mark.parametrize("format", ["--html", "--perfetto"])
def test_only_a_png_needs_matplotlib(format: str, plan_file: Path, tmp_path: Path) -> None:
    assert imported(command("show", plan_file, format, tmp_path / "t")) == set()
    assert "matplotlib" in imported(command("show", plan_file, "--png", tmp_path / "t"))


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["compile-plan", "--help"], ["run", "--help"], ["profile", "--help"], ["plans"]],
)
def test_help_needs_nothing_heavy(words: list[str]) -> None:
    assert imported(command(*words)) == set()


def test_a_named_schedule_needs_no_solver() -> None:
    words = ["schedule", "--stages", "4", "--microbatches", "8", "--order", "1f1b"]
    assert imported(command(*words)) == set()


def test_importing_superscaler_imports_next_to_nothing() -> None:
    assert imported("import superscaler") == set()
    probe = "import sys, superscaler; print(sum(m.startswith('superscaler') for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert int(found.stdout) <= 2  # itself and errors


def test_the_public_names_that_need_no_tensor_import_no_torch() -> None:
    script = "import superscaler as ss; ss.Plan, ss.Cluster, ss.AdamW, ss.check, ss.simulate, ss.plans, ss.schedule"
    assert imported(script) == set()
