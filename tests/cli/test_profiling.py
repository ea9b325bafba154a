"""``superscaler profile``, and what other commands make of what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from superscaler.scheduler.machine import this_machine
from superscaler.scheduler.profile import Profile, profile_path
from tests.cli.conftest import TINY, Command


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plan_is_measured_once_and_simulated_with_that(
    superscaler: Command, tiny_plan: Path, own_cache: Path
) -> None:
    before = json.loads(superscaler("simulate", tiny_plan, "--json").out)
    assert before["costs"] is None
    said = superscaler("profile", tiny_plan, "--no-links", "--repeats", "1")
    assert said.code == 0, said.err
    assert str(own_cache) in said.out
    assert "measured on this machine for" in said.out
    after = json.loads(superscaler("simulate", tiny_plan, "--json").out)
    costs = after["costs"]
    assert costs["measured_tasks"] == costs["tasks"] > 0
    assert costs["machine"] == str(this_machine(4))
    assert after["entries"]["train"]["seconds"] != before["entries"]["train"]["seconds"]
    assert "costs: measured on this machine" in superscaler("simulate", tiny_plan).out
    assert json.loads(superscaler("simulate", tiny_plan, "--profile", "none", "--json").out) == before


def test_a_model_is_measured_under_a_plan_and_compiled_with_that(superscaler: Command, own_cache: Path) -> None:
    options = ["--preset", "tiny", "--batch", "8", "--plan", "data_parallel:ways=2"]
    measured = json.loads(superscaler("profile", "gpt", *options, "--no-links", "--repeats", "1", "--json").out)
    assert measured["ops"] > 20
    made = superscaler("compile-plan", "gpt", *options, "-o", own_cache / "p.json", "--json")
    costs = json.loads(made.out)["costs"]
    assert costs["profile"] == measured["file"]
    assert costs["measured_tasks"] == costs["tasks"]
    other = superscaler("compile-plan", "gpt", *options[:-1], "data_parallel:ways=4", "-o", own_cache / "q.json")
    assert "estimated for the others" in other.out  # half the batch was not measured


def test_a_profile_of_another_machine_is_used_only_by_name_and_with_a_warning(
    superscaler: Command, tiny_plan: Path, tmp_path: Path, own_cache: Path
) -> None:
    file = tmp_path / "theirs.json"
    assert superscaler("profile", tiny_plan, "--no-links", "--repeats", "1", "-o", file).code == 0
    assert "estimated from the cluster's figures" in superscaler("simulate", tiny_plan).out  # the cache has nothing
    found = msgspec.json.decode(file.read_bytes(), type=Profile)
    theirs = msgspec.structs.replace(found, machine=msgspec.structs.replace(found.machine, processor="Their CPU"))
    file.write_bytes(msgspec.json.encode(theirs))
    said = superscaler("simulate", tiny_plan, "--profile", file)
    assert said.code == 0
    assert "of another machine" in said.err
    assert "Their CPU" in said.err
    assert "measured on another machine" in said.out
    here = profile_path(this_machine(4))
    assert own_cache in here.parents
    here.parent.mkdir(parents=True)
    here.write_bytes(file.read_bytes())  # a cache that was copied here
    refused = superscaler("simulate", tiny_plan)
    assert refused.code == 1
    assert refused.err.startswith("ProfileError: ")
    assert "Their CPU" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.plan.json"], "there is no nothing.plan.json"),
        (["gtp"], "did you mean 'gpt'"),
        (["gpt", "--repeats", "0"], "--repeats is 0"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, superscaler: Command) -> None:
    said = superscaler("profile", *arguments)
    assert said.code == 2
    assert message in said.err


@pytest.mark.parametrize("output", ["gpt.plan.json", "gpt.plan.json/inside", "."])
def test_a_bad_place_is_refused_before_anything_is_measured(
    output: str, superscaler: Command, tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superscaler.runtime.profile.measure", None)
    copy = tmp_path / "gpt.plan.json"
    copy.write_bytes(tiny_plan.read_bytes())
    said = superscaler("profile", copy, "--output", tmp_path / output)
    assert said.code == 1
    assert "try: " in said.err
    assert copy.read_bytes() == tiny_plan.read_bytes()


def test_a_file_that_is_no_profile(superscaler: Command, tiny_plan: Path, tmp_path: Path) -> None:
    said = superscaler("simulate", tiny_plan, "--profile", tiny_plan)
    assert said.code == 1
    assert "is no profile" in said.err
    assert superscaler("simulate", tiny_plan, "--profile", "sometimes").code == 2
    assert superscaler(*TINY, "--profile", tmp_path / "missing.json").code == 1
