"""Profiles: what ops, task bodies and links took on one machine, kept on disk; `superscaler profile` measures them.

A profile is of one machine (processor or GPU, cores, torch) and one number of threads per worker. What it has not
measured is estimated from the figures of the device that it has: operations, bytes and calls per second.
"""

from __future__ import annotations

import contextlib
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from superscaler.errors import ProfileError
from superscaler.ir.argument import path_of
from superscaler.ir.cluster import Amount, Cluster, Device, Link, Positive
from superscaler.ir.rules.discovered import cache_dir
from superscaler.ir.writing import refuse_directory, refuse_place, write_at_once
from superscaler.scheduler.machine import Machine

VERSION = 2
"""Of what a profile holds; each version is kept apart."""
_FILE = "the name of a file, in a directory that may be written"
_HERE = 'superscaler profile measures here; --profile FILE, in Python foreign="warn", uses it anyway'


class Profile(msgspec.Struct, frozen=True):
    """Seconds of ops, task bodies and moves by key (see :mod:`.keys`), and the figures of device and links.

    ``post``: seconds of a worker's own time that posting one end of a communication takes. ``crowd``: how many workers
    of this machine computed at once -> how many times longer each took than alone.
    """

    machine: Machine
    device: Device
    link: Link | None = None
    ops: dict[str, Amount] = {}
    blocks: dict[str, Amount] = {}
    post: Amount = 0.0
    moves: dict[str, Amount] = {}
    crowd: dict[int, Positive] = {}
    version: int = VERSION

    def merged(self, newer: Profile) -> Profile:
        """This profile with what a newer one of the same machine has measured."""
        ops, blocks = {**self.ops, **newer.ops}, {**self.blocks, **newer.blocks}
        link, post = (newer.link, newer.post) if newer.link is not None else (self.link, self.post)
        moves, crowd = {**self.moves, **newer.moves}, newer.crowd or self.crowd
        return Profile(newer.machine, newer.device, link, ops, blocks, post, moves, crowd)

    def slowdown(self, busy: int) -> float:
        """How many times longer a task takes while ``busy`` workers of this machine compute, itself included.

        Between measured numbers along a line; beyond the last one all share what there is.
        """
        known = sorted({1: 1.0, **self.crowd}.items())
        for (low, a), (high, b) in pairwise(known):
            if low <= busy <= high:
                return a + (b - a) * (busy - low) / (high - low)
        most, factor = known[-1]
        return factor if busy <= self.machine.cores else factor * busy / max(most, self.machine.cores)

    def applied(self, cluster: Cluster) -> Cluster:
        """The cluster with the measured figures of devices of this kind, and of the links between them."""
        found = self.device
        kinds = tuple(
            msgspec.structs.replace(d, flops={**d.flops, **found.flops}, bandwidth=found.bandwidth,
                                    overhead=found.overhead)
            if d.name == self.machine.kind else d
            for d in cluster.kinds
        )  # fmt: skip
        alike = any(d.name == self.machine.kind for d in cluster.kinds)
        link = self.link if self.link is not None and alike else cluster.intra
        return msgspec.structs.replace(cluster, kinds=kinds, intra=link)


def profile_path(machine: Machine) -> Path:
    """Where the profile of a machine is kept."""
    return cache_dir() / "profiles" / str(VERSION) / machine.file


def load_profile(path: str | Path, here: Machine, *, foreign: Literal["refuse", "warn"] = "refuse") -> Profile:
    """A profile from disk. One of another machine than ``here`` is refused, naming both, or used with a warning.

    Raises :class:`ProfileError`, also for a file that is missing or no profile.
    """
    try:
        found = msgspec.json.decode(path_of(path, _FILE).read_bytes(), type=Profile)
    except OSError as e:
        raise ProfileError(f"cannot read the profile {path}", e.strerror or str(e), hint="superscaler profile") from e
    except msgspec.DecodeError as e:
        raise ProfileError(f"{path} is no profile", str(e)[:200], hint="superscaler profile makes one") from e
    if found.version != VERSION:
        raise ProfileError(f"{path} was measured by another version", hint="superscaler profile measures anew")
    if found.machine != here:
        what = f"the profile {Path(path).name} is of another machine"
        details = (f"it is of {found.machine}", f"this is {here}")
        if foreign == "refuse":
            raise ProfileError(what, *details, hint=_HERE)
        warnings.warn("; ".join((what, *details)), stacklevel=2)
    return found


def refuse_file(path: str | Path, here: Machine) -> None:
    """Raise :class:`ProfileError` if no profile of ``here`` can be written there: something else would be lost."""
    target = path_of(path, _FILE)
    try:
        if not target.exists():
            return refuse_directory(next(above for above in target.absolute().parents if above.exists()))
        refuse_place(target)
        if target.is_file() and target.stat().st_size:
            load_profile(target, here)
    except OSError as e:
        raise ProfileError(f"cannot write the profile {target}", e.strerror or str(e), hint=_FILE) from e
    except ProfileError as e:
        raise ProfileError(e.what, *e.details, hint="another name, or remove it: it would be written over") from e


def save_profile(profile: Profile, path: str | Path | None = None) -> Path:
    """Write a profile, merged with what the file has of the same machine, whole or not at all; where it was written.

    Raises :class:`ProfileError` if it cannot be written (a full disk, say).
    """
    target = path_of(path, _FILE) if path is not None else profile_path(profile.machine)
    with contextlib.suppress(ProfileError):  # none yet, of another machine, or broken: replaced
        profile = load_profile(target, profile.machine).merged(profile)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(target, msgspec.json.format(msgspec.json.encode(profile), indent=1))
    except OSError as e:
        raise ProfileError(f"cannot write the profile {target}", e.strerror or str(e), hint=_FILE) from e
    return target
