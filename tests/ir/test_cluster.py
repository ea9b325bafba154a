"""Cluster files: what they say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from superscaler.errors import ClusterError, SuperscalerError
from superscaler.ir.cluster import GIB, Cluster

TWO_NODES = """
per_node = 4
[[devices]]
kind = "h100"
count = 4
[[devices]]
kind = "a100"
count = 4
memory = 40
speed = 0.5
flops = { bfloat16 = 1e14 }
[links]
intra = "nvlink4"
inter = { bandwidth = 2.5e10, latency = 1e-5 }
"""


def load(text: str, tmp_path: Path) -> Cluster:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return Cluster.load(path)


@pytest.mark.parametrize("devices", [0, -1, 2.5, "2", None, 10**9, 10**30])
def test_a_cluster_has_a_number_of_devices_that_can_be_listed(devices: int) -> None:
    with pytest.raises(SuperscalerError, match="devices"):
        Cluster.local(devices)


def test_mixed_devices_and_links(tmp_path: Path) -> None:
    cluster = load(TWO_NODES, tmp_path)
    assert cluster.size == 8
    assert (cluster.device(3).name, cluster.device(4).name) == ("h100", "a100")
    assert (cluster.device(4).memory, cluster.device(4).speed) == (40 * GIB, 0.5)
    assert cluster.device(4).flops["bfloat16"] == 1e14
    assert cluster.device(4).flops["float32"] == 19.5e12
    assert (cluster.link(0, 3).name, cluster.link(3, 4).bandwidth) == ("nvlink4", 2.5e10)


@pytest.mark.parametrize(("text", "says"), [
    ("", "no [[devices]] table"),
    ("devices = 3", "no [[devices]] table"),
    ("[[devices]]\nkind = 'h1000'", "unknown kind 'h1000'"),
    ("[[devices]]\ncount = 1000000000000", "more than 1,048,576 devices"),
    ("[[devices]]\nmemory = 0", "memory (GiB) must be a positive number, not 0"),
    ("[[devices]]\nmemory = -8", "memory (GiB) must be a positive number"),
    ("[[devices]]\nmemory = nan", "memory (GiB) must be a positive number, not nan"),
    ("[[devices]]\nmemory = inf", "memory (GiB) must be a positive number, not inf"),
    ("[[devices]]\nmemory = true", "memory (GiB) must be a positive number"),
    ("[[devices]]\nmemory = '80'", "memory (GiB) must be a positive number"),
    ("[[devices]]\nmemory = 1e300", "memory must be at most 1,048,576 GiB"),
    ("[[devices]]\nspeed = 1" + "0" * 400, "speed must be a positive number"),
    ("[[devices]]\nspeed = 0", "speed must be a positive number"),
    ("[[devices]]\nspeed = 'fast'", "speed must be a positive number"),
    ("[[devices]]\nbandwidth = -1", "bandwidth must be a positive number"),
    ("[[devices]]\noverhead = nan", "overhead must be a positive number"),
    ("[[devices]]\nflops = 3", "flops must be a table"),
    ("[[devices]]\nflops = { float32 = 0 }", "flops of float32 must be a positive number"),
    ("[[devices]]\ncount = 0", "count must be a positive integer"),
    ("[[devices]]\nmemroy = 8", "did you mean 'memory'"),
    ("per_node = 0\n[[devices]]", "per_node must be a positive integer"),
    ("[[devices]]\n[links]\nintra = 'nvlnk4'", "did you mean 'nvlink4'"),
    ("[[devices]]\n[links]\nintra = { bandwidth = 0, latency = 0 }", "bandwidth must be a positive number"),
    ("[[devices]]\n[links]\nintra = { bandwidth = 1, latency = -1 }", "latency must be a positive number"),
    ("[[devices]]\n[links]\nintra = 3", "give the name of a link class"),
    ("[[devices]]\n[links]\nouter = 'pcie'", "links: unknown key 'outer'"),
    ("[[devices]]\n[links]\nintra = { bandwidth = 1, latency = 1, lag = 2 }", "links.intra: unknown key 'lag'"),
    ("[[devices]]\n[link]\nintra = 'pcie'", "did you mean 'links'"),
    ("per_nodes = 4\n[[devices]]", "did you mean 'per_node'"),
    ("[[devices]]\nflops = { flaot32 = 1e12 }", "did you mean 'float32'"),
    ("[[devices]]\nmemory = 1e-12", "memory must be at least one byte"),
    ("per_node = true\n[[devices]]", "per_node must be a positive integer"),
    ("name = 7\n[[devices]]", "name must be a text, not 7"),
    ("[[devices]]\nname = ['a']", "name must be a text"),
    ("[[devices]]\nkind = 'h100'\n[[devices]]\nkind = 'a100'", "no link between devices 0 and 1, on one node"),
    (
        "per_node = 1\n[[devices]]\nkind = 'h100'\n[[devices]]\nkind = 'cpu'",
        "no link between devices 0 and 1, on different nodes",
    ),
    ("[[devices]]\ncount = 16\n[links]\nintra = 'nvlink4'", "no link between devices 0 and 8, on different nodes"),
    ("[[devices]]\ncount = 4\n[links]\ninter = 'ethernet'", "no link between devices 0 and 1, on one node"),
    ("[[devices", "not valid TOML"),
    ("a = " + "[" * 5000, "not valid TOML"),
])  # fmt: skip
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        load(text, tmp_path)
    assert says in str(caught.value)
    assert "try: " in str(caught.value)


@pytest.mark.parametrize("text", [
    "[[devices]]\nkind = 'h100'",
    "[[devices]]\nkind = 'h100'\nname = 'mine'",
    "[[devices]]\nkind = 'h100'\nspeed = 0.5\n[[devices]]\nkind = 'h200'",
])  # fmt: skip
def test_links_that_nobody_states_are_those_of_the_preset_whatever_its_devices_are_called(
    text: str, tmp_path: Path
) -> None:
    cluster = load(text, tmp_path)
    assert (cluster.intra.name, cluster.inter.name, cluster.host.name) == ("nvlink4", "infiniband", "pcie")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\x80\xff")
    with pytest.raises(ClusterError, match="not valid TOML"):
        Cluster.load(tmp_path / "binary.toml")


@pytest.mark.parametrize("memory", [0, -1.0, float("nan"), float("inf"), 1e300, "80"])
def test_memory_that_no_device_has(memory: float) -> None:
    with pytest.raises(ClusterError, match="memory"):
        Cluster.local(2, memory=memory)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot read"):
        Cluster.load(tmp_path / "none.toml")
