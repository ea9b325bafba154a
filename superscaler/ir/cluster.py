"""Clusters: the devices a plan may use, their memory and speed, and the links between them."""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from superscaler.errors import ClusterError, UsageError, did_you_mean
from superscaler.ir.argument import path_of, shown, whole
from superscaler.ir.graph import ITEMSIZE

GIB = 1 << 30
MOST = 1 << 20
"""Devices of a cluster, which are listed one by one."""
_MOST_GIB = 1 << 20
_LARGEST = sys.float_info.max
Amount = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
"""Figures as files may hold them: nothing takes less than no time."""


class Device(msgspec.Struct, frozen=True):
    """One device. ``memory`` in bytes; ``flops`` dense multiply-add operations × 2 per second, by dtype;
    ``bandwidth`` of its memory in bytes per second; ``overhead`` seconds per launched op."""

    name: str
    memory: int
    flops: dict[str, Positive]
    bandwidth: Positive
    overhead: Amount = 0.0
    speed: Positive = 1.0


class Link(msgspec.Struct, frozen=True):
    """One link class. ``bandwidth`` in bytes per second and direction, ``latency`` in seconds."""

    name: str
    bandwidth: Positive
    latency: Amount


# Datasheet figures of the vendors (dense rates, no sparsity); efficiency is a matter of `superscaler profile`.
DEVICES: dict[str, Device] = {
    "cpu": Device("cpu", 8 * GIB, {"float32": 6e10, "float64": 3e10, "bfloat16": 3e10}, 1.0e10, 3e-6),
    "v100": Device("v100", 32 * GIB, {"float32": 15.7e12, "float16": 125e12, "bfloat16": 15.7e12}, 0.9e12, 5e-6),
    "a100": Device("a100", 80 * GIB, {"float32": 19.5e12, "float16": 312e12, "bfloat16": 312e12}, 2.0e12, 5e-6),
    "h100": Device("h100", 80 * GIB, {"float32": 67e12, "float16": 989e12, "bfloat16": 989e12}, 3.35e12, 5e-6),
    "h200": Device("h200", 141 * GIB, {"float32": 67e12, "float16": 989e12, "bfloat16": 989e12}, 4.8e12, 5e-6),
    "b200": Device("b200", 180 * GIB, {"float32": 75e12, "float16": 2250e12, "bfloat16": 2250e12}, 8.0e12, 5e-6),
}
LINKS: dict[str, Link] = {
    "loopback": Link("loopback", 1.0e9, 1e-3),
    "memory": Link("memory", 4e9, 1e-5),
    "pcie": Link("pcie", 25e9, 5e-6),
    "nvlink2": Link("nvlink2", 150e9, 3e-6),
    "nvlink3": Link("nvlink3", 300e9, 3e-6),
    "nvlink4": Link("nvlink4", 450e9, 3e-6),
    "nvlink5": Link("nvlink5", 900e9, 3e-6),
    "infiniband": Link("infiniband", 50e9, 5e-6),
    "ethernet": Link("ethernet", 1.25e9, 3e-5),
}
_LINK_NAMES = ("intra", "inter", "host")
_KEYS = ("name", "devices", "links", "per_node")
_PRESET_LINKS = {
    "cpu": ("loopback", "ethernet"),
    "v100": ("nvlink2", "infiniband"),
    "a100": ("nvlink3", "infiniband"),
    "h100": ("nvlink4", "infiniband"),
    "h200": ("nvlink4", "infiniband"),
    "b200": ("nvlink5", "infiniband"),
}


class Cluster(msgspec.Struct, frozen=True):
    """Devices in order, ``per_node`` of them on each node, with one link class inside a node and one between nodes.

    ``kinds`` names the devices' descriptions; ``devices[i]`` is an index into it. ``host``: the link between a device
    and the memory of its host.
    """

    name: str
    kinds: tuple[Device, ...]
    devices: tuple[int, ...]
    per_node: int
    intra: Link
    inter: Link
    host: Link = LINKS["pcie"]

    @staticmethod
    def local(workers: int = 1, *, memory: float | None = None) -> Cluster:
        """This machine: ``workers`` CPU workers. ``memory``: GiB each."""
        return Cluster.preset("cpu", devices=workers, name="local", memory=memory)

    @staticmethod
    def preset(
        kind: str, *, devices: int, per_node: int = 8, name: str | None = None, memory: float | None = None
    ) -> Cluster:
        """``devices`` equal devices of a known kind.

        Raises :class:`UsageError` for an unknown kind, :class:`ClusterError` for no devices or too many to list.
        """
        if kind not in DEVICES:
            raise UsageError(f"unknown cluster preset {kind!r}", hint=did_you_mean(kind, [*DEVICES, "local"]))
        if not 1 <= whole(devices, "devices") <= MOST:
            raise ClusterError(f"a cluster has 1 to {MOST:,} devices, not {devices:,}", hint="devices=8, say")
        device = DEVICES[kind]
        if memory is not None:
            device = msgspec.structs.replace(device, memory=bytes_of(memory, "memory"))
        intra, inter = _PRESET_LINKS[kind]
        return Cluster(
            name or kind, (device,), (0,) * devices, per_node, LINKS[intra], LINKS[inter], LINKS[_host_link(kind)]
        )

    @staticmethod
    def load(path: str | Path) -> Cluster:
        """Read a TOML description: ``[[devices]]`` tables (kind or figures, count) and ``[links]``.

        Raises :class:`ClusterError` naming the key at fault.
        """
        file = path_of(path, 'Cluster.load("cluster.toml")')
        try:
            data = tomllib.loads(file.read_text())
        except OSError as e:
            raise ClusterError(f"cannot read the cluster file {path}: {e.strerror}", hint="a TOML file") from e
        except (ValueError, RecursionError) as e:  # also bytes that are no text, and tables without end
            raise ClusterError(f"{path} is not valid TOML: {e}", hint='[[devices]]\nkind = "h100"\ncount = 8') from e
        return _from_toml(data, str(path))

    @property
    def size(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    def device(self, index: int) -> Device:
        """The description of device number ``index``."""
        return self.kinds[self.devices[index]]

    def link(self, a: int, b: int) -> Link:
        """The link class between two devices."""
        return self.intra if a // self.per_node == b // self.per_node else self.inter

    def take(self, devices: int, count: int) -> list[list[int]]:
        """The first ``devices`` devices in ``count`` equal consecutive groups."""
        if whole(count, "a number of groups") < 1:
            raise ClusterError(
                f"a plan needs at least one group of devices, not {count}", hint="one stage: no pipeline"
            )
        if whole(devices, "a number of devices") > self.size:
            raise ClusterError(
                f"the plan needs {devices} devices, the cluster has {self.size}",
                hint=f"{devices} devices, or degrees whose product is {self.size}",
            )
        return [list(range(i * devices // count, (i + 1) * devices // count)) for i in range(count)]

    def groups(self, count: int) -> list[list[int]]:
        """The devices in ``count`` equal consecutive groups."""
        if whole(count, "a number of groups") < 1 or self.size % count:
            raise ClusterError(
                f"{self.size} devices cannot be cut into {count} equal groups", hint="a number that divides them"
            )
        each = self.size // count
        return [list(range(i * each, (i + 1) * each)) for i in range(count)]


def _from_toml(data: dict[str, object], where: str) -> Cluster:
    _no_others(data, _KEYS, where)
    rows = data.get("devices")
    if not isinstance(rows, list) or not rows:
        raise ClusterError(f"{where}: no [[devices]] table", hint='[[devices]]\nkind = "h100"\ncount = 8')
    kinds: list[Device] = []
    devices: list[int] = []
    for i, row in enumerate(rows):
        device, count = _device_row(row, f"{where}: devices[{i}]")
        kinds.append(device)
        if len(devices) + count > MOST:
            raise ClusterError(f"{where}: devices[{i}]: more than {MOST:,} devices in all", hint="count = 8, say")
        devices.extend([i] * count)
    links = data.get("links", {})
    if not isinstance(links, dict):
        raise ClusterError(f"{where}: [links] must be a table", hint='[links]\nintra = "nvlink4"')
    per_node = data.get("per_node", 8)
    if not isinstance(per_node, int) or isinstance(per_node, bool) or per_node < 1:
        raise ClusterError(f"{where}: per_node must be a positive integer, not {per_node!r}", hint="per_node = 8")
    _no_others(links, _LINK_NAMES, f"{where}: links")
    presets = [str(row.get("kind", "cpu")) for row in rows]
    _every_link(links, presets, len(devices), per_node, where)
    intra = _link(links.get("intra", _PRESET_LINKS[presets[0]][0]), f"{where}: links.intra")
    inter = _link(links.get("inter", _PRESET_LINKS[presets[0]][1]), f"{where}: links.inter")
    host = _link(links.get("host", _host_link(presets[0])), f"{where}: links.host")
    name = _text(data.get("name", Path(where).stem), f"{where}: name")
    return Cluster(name, tuple(kinds), tuple(devices), per_node, intra, inter, host)


def _no_others(table: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """What a file says under a name that nobody reads would count for nothing."""
    for key in table:
        if key not in known:
            raise ClusterError(f"{where}: unknown key {key!r}", hint=did_you_mean(key, known))


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ClusterError(f"{where} must be a text, not {shown(value)}", hint='name = "lab"')
    return value


def _host_link(kind: str) -> str:
    return "memory" if kind == "cpu" else "pcie"


def _every_link(links: dict[str, object], presets: list[str], devices: int, per_node: int, where: str) -> None:
    """A file that states links states all that its devices need: none of another preset is put in their place.

    One that states none has those of its devices' preset; presets with different links have none in common.
    """
    mixed = len({_PRESET_LINKS[kind] for kind in presets}) > 1
    for name, used, between in (
        ("intra", min(devices, per_node) > 1, "0 and 1, on one node"),
        ("inter", devices > per_node, f"0 and {per_node}, on different nodes"),
    ):
        if used and name not in links and (links or mixed):
            rest = "" if mixed else ", or no [links] at all"
            raise ClusterError(
                f"{where}: no link between devices {between}",
                *([f"{' and '.join(dict.fromkeys(presets))} have different links of their own"] if mixed else []),
                hint=f'{name} = "{_PRESET_LINKS[presets[0]][name == "inter"]}" below [links]{rest}',
            )


def _device_row(row: object, where: str) -> tuple[Device, int]:
    if not isinstance(row, dict):
        raise ClusterError(f"{where} must be a table", hint='[[devices]]\nkind = "h100"\ncount = 8')
    _no_others(row, ("kind", "count", "memory", "flops", "bandwidth", "overhead", "speed", "name"), where)
    kind = str(row.get("kind", "cpu"))
    if kind not in DEVICES:
        raise ClusterError(f"{where}: unknown kind {kind!r}", hint=did_you_mean(kind, DEVICES))
    base = DEVICES[kind]
    count = row.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ClusterError(f"{where}: count must be a positive integer, not {count!r}", hint="count = 8")
    flops = row.get("flops", {})
    if not isinstance(flops, dict):
        raise ClusterError(
            f"{where}: flops must be a table of operations per second by dtype, not {flops!r}",
            hint="flops = {float32 = 1e12}",
        )
    _no_others(flops, ITEMSIZE, f"{where}: flops")
    changed = {
        "name": _text(row.get("name", base.name), f"{where}: name"),
        "memory": bytes_of(row["memory"], f"{where}: memory") if "memory" in row else base.memory,
        "flops": {**base.flops, **{str(d): _positive(v, f"{where}: flops of {d}") for d, v in flops.items()}},
        "bandwidth": _positive(row.get("bandwidth", base.bandwidth), f"{where}: bandwidth"),
        "overhead": _positive(row.get("overhead", base.overhead), f"{where}: overhead", zero=True),
        "speed": _positive(row.get("speed", 1.0), f"{where}: speed"),
    }
    return msgspec.structs.replace(base, **changed), count


def _positive(value: object, what: str, *, zero: bool = False) -> float:
    """``value`` if it is a number more than 0 (or ``zero``) and not infinite."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (0 < number <= _LARGEST or (zero and number == 0)):
        raise ClusterError(f"{what} must be a positive number, not {shown(value)}", hint="a number like 80.0")
    return float(number)


def bytes_of(gib: object, what: str) -> int:
    """So many GiB in bytes. Raises :class:`ClusterError` calling it ``what`` for what no device has."""
    found = _positive(gib, f"{what} (GiB)")
    if found > _MOST_GIB:
        raise ClusterError(f"{what} must be at most {_MOST_GIB:,} GiB, not {found:g}", hint="it is in GiB: 80.0, say")
    if found * GIB < 1:
        raise ClusterError(f"{what} must be at least one byte, not {found:g} GiB", hint="it is in GiB: 80.0, say")
    return int(found * GIB)


def _link(value: object, where: str) -> Link:
    if isinstance(value, str):
        if value not in LINKS:
            raise ClusterError(f"{where}: unknown link class {value!r}", hint=did_you_mean(value, LINKS))
        return LINKS[value]
    if isinstance(value, dict) and {"bandwidth", "latency"} <= set(value):
        _no_others(value, ("bandwidth", "latency", "name"), where)
        bandwidth = _positive(value["bandwidth"], f"{where}: bandwidth")
        latency = _positive(value["latency"], f"{where}: latency", zero=True)
        return Link(_text(value.get("name", "custom"), f"{where}: name"), bandwidth, latency)
    raise ClusterError(
        f"{where}: give the name of a link class, or bandwidth (bytes/s) and latency (s)",
        hint='intra = "nvlink4", or a table: bandwidth = 450e9, latency = 3e-6',
    )
