"""``superscaler compile-plan``: what it takes, what it writes, and what it says of what it cannot take."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from superscaler.ir.plan import Plan
from tests.cases import slow
from tests.cli.conftest import TINY, Command

SINGLE = ("--plan", "data_parallel:ways=1")


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_plan_is_written_checked_and_described(superscaler: Command) -> None:
    said = superscaler(*TINY, "--plan", "megatron:tensor=2,pipeline=2", "--microbatches", "4", "-o", "p.json")
    assert said.code == 0
    assert "plan of GPT" in said.out
    assert "wrote p.json" in said.out
    plan = Plan.load("p.json")
    assert plan.workers == 4
    assert plan.entries["train"].microbatches == 4
    assert plan.settings["plan"] == "megatron:tensor=2,pipeline=2,microbatches=4"


def test_json_is_one_object_and_nothing_else(superscaler: Command) -> None:
    said = superscaler(*TINY, *SINGLE, "-o", "p.json", "--json")
    figures = json.loads(said.out)
    assert figures["file"] == "p.json"
    assert figures["workers"] == 1
    assert figures["entries"][0]["bound"] <= figures["entries"][0]["makespan"]
    assert said.out.count("\n") == 1


def test_settings_of_a_preset_are_changed(superscaler: Command) -> None:
    superscaler(*TINY, *SINGLE, "--set", "layers=1", "--seq", "7", "-o", "p.json")
    graph = Plan.load("p.json").entries["train"].graph
    assert not any(t.name.startswith("blocks.1.") for t in graph.tensors)
    assert graph.tensor["ids"].shape == (8, 7)


def test_auto_tries_every_product_and_takes_the_shortest_step_that_fits(superscaler: Command) -> None:
    said = superscaler(*TINY, "--plan", "auto", "--devices", "4", "-o", "p.json", "--json")
    tried = json.loads(said.out)["tried"]
    degrees = {trial["plan"].rpartition(",")[0] for trial in tried}
    assert len(degrees) == 6  # of 4 devices: data × tensor × pipeline
    best = min((t for t in tried if not t["refused"]), key=lambda t: t["seconds"])
    assert Plan.load("p.json").settings["plan"] == best["plan"]


def test_a_script_is_a_plan(superscaler: Command) -> None:
    Path("mine.py").write_text(
        textwrap.dedent("""
        def two_stages(p):
            p.microbatches(2)
            for stage, devices in zip(p.stages(2), p.cluster.groups(2)):
                p.assign(stage, devices)
        """)
    )
    assert superscaler(*TINY, "--plan", "mine.py:two_stages", "--devices", "2", "-o", "p.json").code == 0
    assert Plan.load("p.json").workers == 2


def test_anyones_module_is_a_model(superscaler: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_models.py").write_text(
        textwrap.dedent("""
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.rate = torch.linspace(0, 0.1, 3)[1].item()  # needs a real tensor
                self.linear = torch.nn.Linear(6, 2)

            def forward(self, x):
                return self.linear(x).square().mean()

        def net():
            return Net(), lambda batch: (torch.randn(batch, 6),)

        def alone():
            return Net()

        def fails():
            return 1 / 0
        """)
    )
    assert superscaler("compile-plan", "my_models:net", *SINGLE, "--batch", "5", "-o", "p.json").code == 0
    assert Plan.load("p.json").entries["train"].graph.tensor["x"].shape == (5, 6)
    said = superscaler("compile-plan", "my_models:alone", *SINGLE)
    assert (said.code, "without inputs" in said.err) == (2, True)
    said = superscaler("compile-plan", "my_models:fails", *SINGLE)
    assert said.code == 2
    assert "ZeroDivisionError" in said.err
    assert "my_models.py:" in said.err
    assert "return 1 / 0" in said.err
    assert "Traceback" not in said.err
    assert "did you mean 'alone'" in superscaler("compile-plan", "my_models:alon", *SINGLE).err


def test_a_directory_of_transformers_is_a_model(superscaler: Command, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path / "llama")
    assert superscaler("compile-plan", "hf:llama", "--plan", "megatron:tensor=2", "-o", "p.json").code == 0
    assert Plan.load("p.json").model["name"] == "LlamaForCausalLM"
    assert superscaler("compile-plan", "hf:lama", *SINGLE).code == 2


def test_a_model_of_175_billion_parameters_takes_no_memory_of_theirs(superscaler: Command) -> None:
    """Two of its 96 layers, at full width: 2.5 GB of weights, were they made."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = superscaler(
        "compile-plan", "gpt", "--preset", "gpt3-175b", "--set", "layers=2", "--plan", "megatron:tensor=8",
        "--batch", "8", "--cluster", "h100", "-o", "p.json", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert json.loads(said.out)["parameters"] > 4e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


@pytest.mark.parametrize(
    ("plan", "workers"),
    [
        slow("data_parallel:ways=3", 3),
        ("megatron:tensor=2,pipeline=2", 4),
        slow("recompute+megatron:data=2", 2),
        slow("zero:level=1,data=2", 2),
        ("interlaced", 2),
    ],
)
def test_without_a_number_of_devices_it_is_the_plans(plan: str, workers: int, superscaler: Command) -> None:
    said = superscaler(*TINY, "--plan", plan, "-o", "p.json", "--json")
    assert said.code == 0, said.err
    assert (json.loads(said.out)["devices"], json.loads(said.out)["workers"]) == (workers, workers)


MISTAKES = {
    "an unknown model": (["compile-plan", "gbt"], "did you mean 'gpt'", 2),
    "an unknown preset": (["compile-plan", "gpt", "--preset", "tinny"], "did you mean 'tiny'", 2),
    "an unknown setting": (["compile-plan", "gpt", "--set", "layer=3"], "did you mean 'layers'", 2),
    "a setting without a value": (["compile-plan", "gpt", "--set", "layers"], "--set key=value", 2),
    "an unknown plan": (["compile-plan", "gpt", "--plan", "megatrom"], "did you mean 'megatron'", 2),
    "an unknown option of a plan": (["compile-plan", "gpt", "--plan", "megatron:tensr=2"], "did you mean 'tensor'", 2),
    "an unknown option": (["compile-plan", "gpt", "--plann", "auto"], "did you mean '--plan'", 2),
    "an unknown command": (["compil"], "did you mean 'compile-plan'", 2),
    "an unknown cluster": (["compile-plan", "gpt", "--cluster", "h1000"], "did you mean 'h100'", 2),
    "an unknown optimizer": (["compile-plan", "gpt", "--optimizer", "adam"], "did you mean 'adamw'", 2),
    "a script that is not there": (["compile-plan", "gpt", "--plan", "no.py:plan"], "no script no.py", 2),
    "a module that is not there": (["compile-plan", "no_such.module:f"], "no module 'no_such.module'", 2),
    "options that disagree": (
        ["compile-plan", "gpt", "--plan", "megatron:microbatches=4", "--microbatches", "2"],
        "--microbatches 2 and microbatches=4 in --plan disagree", 2,
    ),
    "micro-batches of a plan that has none": (
        ["compile-plan", "gpt", "--plan", "recompute", "--microbatches", "2"], "has no micro-batches", 2,
    ),
    "a batch of nothing": (["compile-plan", "gpt", *SINGLE, "--batch", "0"], "batch must be at least 1", 2),
    "a sequence that is too long": (["compile-plan", "gpt", *SINGLE, "--seq", "99"], "seq 99 exceeds context 32", 2),
    "memory of nothing": (["compile-plan", "gpt", *SINGLE, "--memory", "0"], "more than 0", 2),
    "more devices than there are": (
        ["compile-plan", "gpt", "--plan", "megatron:tensor=2,pipeline=2", "--devices", "3"],
        "is for 4 devices, and --devices is 3", 1,
    ),
    "devices that the plan does not use": (
        ["compile-plan", "gpt", "--plan", "megatron:tensor=2,pipeline=2", "--devices", "6"],
        "is for 4 devices, and --devices is 6", 1,
    ),
    "more devices than can be listed": (
        ["compile-plan", "gpt", "--plan", "zero:data=99999999999999999999"], "a cluster has 1 to 1,048,576 devices", 1,
    ),
    "a batch that micro-batches cannot split": (
        ["compile-plan", "gpt", "--batch", "2", "--plan", "data_parallel:ways=2,microbatches=3"],
        "a batch of 2 cannot be split into 6 parts", 1,
    ),
    "memory that is no number": (["compile-plan", "gpt", *SINGLE, "--memory", "nan"], "--memory is nan GiB", 2),
    "memory that no device has": (["compile-plan", "gpt", *SINGLE, "--memory", "1e300"], "at most 1,048,576 GiB", 1),
    "a rate that is no number": (["compile-plan", "gpt", *SINGLE, "--lr", "nan"], "--lr is nan", 2),
    "a time that is no number": (["compile-plan", "gpt", *SINGLE, "--time-limit", "nan"], "time limit: nan", 2),
    "too little memory": (["compile-plan", "gpt", *SINGLE, "--memory", "0.0001"], "InfeasiblePlan", 1),
    "too little memory for any plan": (
        ["compile-plan", "gpt", "--devices", "2", "--memory", "0.0001"], "no plan for 2 devices fits", 1,
    ),
    "a place that is not there": (["compile-plan", "gpt", *SINGLE, "-o", "no/p.json"], "cannot write no/p.json", 1),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_without_a_traceback(mistake: str, superscaler: Command) -> None:
    arguments, message, code = MISTAKES[mistake]
    said = superscaler(*arguments)
    assert message in said.err
    assert said.code == code
    assert said.out == ""
    assert "Traceback" not in said.err
    assert not list(Path().glob("*.json"))


def test_a_wrong_number_of_devices_is_told_before_the_model_is_looked_at(superscaler: Command) -> None:
    said = superscaler("compile-plan", "no.such.module:factory", "--plan", "zero:data=2", "--devices", "4")
    assert "is for 2 devices, and --devices is 4" in said.err
    assert said.code == 1


def test_a_model_that_cannot_be_traced_is_told_with_its_line(superscaler: Command) -> None:
    Path("branching.py").write_text(
        textwrap.dedent("""
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(4, 4)

            def forward(self, x):
                if x.sum() > 0:
                    return self.linear(x).sum()
                return self.linear(x).mean()

        def net():
            return Net(), (torch.ones(2, 4),)
        """)
    )
    said = superscaler("compile-plan", "branching.py:net", *SINGLE)
    assert said.code == 1
    assert said.err.startswith("TraceError:")
    assert "branching.py:10" in said.err


def test_a_plan_script_that_fails_is_told_with_its_line(superscaler: Command) -> None:
    Path("wrong.py").write_text("def plan(p):\n    p.stagess(2)\n")
    said = superscaler(*TINY, "--plan", "wrong.py:plan", "--devices", "2")
    assert "wrong.py:2" in said.err
    assert "stagess" in said.err
    assert "Traceback" not in said.err


def test_a_script_that_gives_a_plan_is_told_to_be_one(superscaler: Command) -> None:
    Path("maker.py").write_text("def maker(ways):\n    return lambda p: p.microbatches(2)\n")
    said = superscaler(*TINY, "--plan", "maker.py:maker", "--devices", "2")
    assert (said.code, "the plan gives a plan" in said.err) == (2, True)


@pytest.mark.parametrize("body", ["import sys\nsys.exit(3)", "1 / 0", "import no_such_package"])
def test_a_module_or_the_package_around_it_that_ends_the_command_is_told_with_its_line(
    body: str, superscaler: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = f"ending_{abs(hash(body))}"
    Path(package).mkdir()
    Path(package, "__init__.py").write_text(body)
    for name in (f"{package}:f", f"{package}.inner:f"):
        said = superscaler("compile-plan", name, *SINGLE)
        assert said.code == 2
        assert "cannot be imported" in said.err
        assert f"__init__.py:{body.count(chr(10)) + 1}" in said.err


def test_a_full_disk_leaves_the_plan_that_was_there(superscaler: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    superscaler(*TINY, *SINGLE, "-o", "p.json")
    before = Path("p.json").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = superscaler(*TINY, "--plan", "data_parallel:ways=2", "-o", "p.json")
    assert said.code == 1
    assert "No space left on device" in said.err
    assert Path("p.json").read_bytes() == before
    assert [p.name for p in Path().iterdir()] == ["p.json"]
