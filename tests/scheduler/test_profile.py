"""Profiles: kept by machine, refused on another, and what the simulator and the compiler make of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
import pytest
import torch

import superscaler as ss
from superscaler.errors import ClusterError, ProfileError
from superscaler.ir.cluster import DEVICES, Link
from superscaler.models import build
from superscaler.scheduler.cost import VIEWS
from superscaler.scheduler.keys import Keys, op_key
from superscaler.scheduler.machine import Machine
from superscaler.scheduler.profile import Profile, load_profile, profile_path, refuse_file, save_profile

HERE = Machine("cpu", "Some Processor 9", 4, 2, "2.13.0")
OTHER = Machine("cpu", "Another Processor", 8, 2, "2.13.0")
EMPTY = Profile(HERE, DEVICES["cpu"])


@lru_cache(maxsize=3)
def plan(script: str = "pipeline:stages=2,microbatches=2", devices: int = 2) -> ss.Plan:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    return ss.compile(
        model, example(4, 16), cluster=ss.Cluster.local(devices), plan=script, optimizer=ss.SGD(), evaluate=False
    )


def blocks(found: ss.Plan, seconds: float) -> dict[str, float]:
    """Every task body of a plan at so many seconds."""
    entry = found.entries["train"]
    keys = [(Keys(found, entry, p), item) for p in entry.programs for item in p.order]
    return {k.block(item.block, item.microbatch): seconds for k, item in keys}


def test_a_profile_is_merged_with_what_was_measured_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save_profile(Profile(HERE, DEVICES["cpu"], Link("measured", 1e9, 1e-4), {"x": 1.0, "y": 1.0}), path)
    save_profile(Profile(HERE, DEVICES["cpu"], None, {"y": 2.0}, {"b": 3.0}), path)
    found = load_profile(path, HERE)
    assert (found.ops, found.blocks) == ({"x": 1.0, "y": 2.0}, {"b": 3.0})
    assert found.link == Link("measured", 1e9, 1e-4)


def test_machines_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path))
    assert save_profile(EMPTY) == profile_path(HERE) != profile_path(OTHER)
    assert profile_path(HERE).name == "some-processor-9-4-2-2-13-0.json"


def test_a_profile_of_another_machine_is_refused_by_name(tmp_path: Path) -> None:
    path = save_profile(EMPTY, tmp_path / "a.json")
    with pytest.raises(ProfileError) as refused:
        load_profile(path, OTHER)
    assert "Some Processor 9" in str(refused.value)
    assert "Another Processor" in str(refused.value)


def test_what_a_profile_would_be_written_over_is_looked_at_before(tmp_path: Path) -> None:
    save_profile(EMPTY, tmp_path / "here.json")
    (tmp_path / "empty.json").touch()
    for name in ("here.json", "empty.json", "new.json", "new/directory/profile.json"):
        refuse_file(tmp_path / name, HERE)
    save_profile(Profile(OTHER, DEVICES["cpu"]), tmp_path / "other.json")
    (tmp_path / "plan.json").write_text("a plan")
    for name, why in (("other.json", "another machine"), ("plan.json", "is no profile"), (".", "cannot write"),
                      ("plan.json/profile.json", "cannot write")):  # fmt: skip
        with pytest.raises(ProfileError, match=why) as refused:
            refuse_file(tmp_path / name, HERE)
        assert "try: " in str(refused.value)


def test_it_is_used_with_a_warning_if_the_user_says_so(tmp_path: Path) -> None:
    path = save_profile(EMPTY, tmp_path / "a.json")
    with pytest.warns(UserWarning, match="of another machine.*Some Processor 9"):
        assert load_profile(path, OTHER, foreign="warn") == EMPTY


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"machine": 3}'])
def test_what_is_no_profile(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ProfileError):
        load_profile(path, HERE)
    if content is not None:
        save_profile(EMPTY, path)  # a broken one is replaced
        assert load_profile(path, HERE) == EMPTY


@pytest.mark.parametrize("said", [
    {"ops": {"x": -1.0}}, {"blocks": {"x": -1.0}}, {"moves": {"x": -1.0}}, {"post": -1.0}, {"crowd": {"2": 0.0}},
    {"link": {"name": "lo", "bandwidth": 0.0, "latency": 0.0}},
    {"device": {"name": "cpu", "memory": 1, "flops": {"float32": 0.0}, "bandwidth": 1.0}},
])  # fmt: skip
def test_nothing_takes_less_than_no_time(tmp_path: Path, said: dict[str, object]) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(EMPTY) | said))
    with pytest.raises(ProfileError, match="is no profile") as refused:
        load_profile(path, HERE)
    assert f"$.{next(iter(said))}" in str(refused.value)


def test_a_task_that_would_take_for_ever(tmp_path: Path) -> None:
    found = plan()
    path = save_profile(msgspec.structs.replace(EMPTY, blocks=blocks(found, 1e300)), tmp_path / "a.json")
    with pytest.raises(ClusterError, match=r"would take 1e\+300 s"):
        ss.simulate(found, profile=load_profile(path, HERE))


def test_keys_tell_shapes_and_dtypes_apart_and_equal_layers_not() -> None:
    found = plan()
    graph, space = found.entries["train"].graph, found.space
    keys = {op.name: op_key(op, graph, (), space) for op in graph.ops}
    assert keys["blocks.0.mlp.up/mm"] == keys["blocks.1.mlp.up/mm"] != keys["blocks.0.mlp.down/mm"]
    assert keys["blocks.0.mlp.up/mm"].startswith("aten.mm.default")
    assert "float32[64, 32], float32[32, 128] -> float32[64, 128]" in keys["blocks.0.mlp.up/mm"]


def test_the_simulator_uses_measured_task_bodies() -> None:
    """Two stages, two micro-batches, each body 1 ms: three forwards and backwards deep, and what is done once."""
    found = plan()
    fast = ss.simulate(found, profile=msgspec.structs.replace(EMPTY, blocks=blocks(found, 1e-3)))
    slow = ss.simulate(found, profile=msgspec.structs.replace(EMPTY, blocks=blocks(found, 1e-1)))
    assert 6_000 < fast.makespan < 30_000
    assert 60 < slow.makespan / fast.makespan < 100  # the link takes what it took


def test_what_was_not_measured_is_the_sum_of_its_ops() -> None:
    found = plan("data_parallel:ways=1", 1)
    entry = found.entries["train"]
    graph = entry.graph
    seconds = {op_key(op, graph, (), found.space): 1e-3 for op in graph.ops}
    timeline = ss.simulate(found, profile=msgspec.structs.replace(EMPTY, ops=seconds))
    timed = [op for op in graph.ops if op.target not in VIEWS]
    assert timeline.makespan == pytest.approx(1000 * len(timed), rel=0.15)  # constants are computed where they are read


def test_the_compiler_uses_measured_ops() -> None:
    torch.manual_seed(0)
    model, example = build("gpt", "tiny")
    graph, space = plan("data_parallel:ways=1", 1).entries["train"].graph, plan("data_parallel:ways=1", 1).space
    slow = Profile(HERE, DEVICES["cpu"], None, {op_key(op, graph, (), space): 1e-2 for op in graph.ops})
    given = {"cluster": ss.Cluster.local(1), "optimizer": ss.SGD(), "evaluate": False}
    usual = ss.compile(model, example(4, 16), **given)
    found = ss.compile(model, example(4, 16), profile=slow, **given)
    assert found.entries["train"].certificate.makespan > 100 * usual.entries["train"].certificate.makespan


def test_figures_apply_to_devices_of_that_kind_only() -> None:
    fast = msgspec.structs.replace(DEVICES["cpu"], bandwidth=1e12)
    profile = Profile(HERE, fast, Link("measured", 5e9, 1e-5))
    assert profile.applied(ss.Cluster.local(2)).device(0).bandwidth == 1e12
    assert profile.applied(ss.Cluster.local(2)).intra.bandwidth == 5e9
    assert profile.applied(ss.Cluster.preset("h100", devices=2)) == ss.Cluster.preset("h100", devices=2)


def test_the_slowdown_of_a_crowd() -> None:
    """Along a line between what was measured; beyond it all share the cores."""
    known = msgspec.structs.replace(EMPTY, crowd={2: 1.2, 4: 1.6})
    assert [known.slowdown(busy) for busy in (1, 2, 3, 4)] == pytest.approx([1.0, 1.2, 1.4, 1.6])
    assert known.slowdown(8) == pytest.approx(3.2)
    assert EMPTY.slowdown(4) == 1.0  # a core for each
    assert EMPTY.slowdown(8) == 2.0


def test_a_profile_of_an_older_version_is_not_used(tmp_path: Path) -> None:
    old = msgspec.structs.replace(EMPTY, version=1)
    (tmp_path / "a.json").write_bytes(msgspec.json.encode(old))
    with pytest.raises(ProfileError, match="another version"):
        load_profile(tmp_path / "a.json", HERE)
