"""Rules found by execution, kept on disk: one file of data per op, in the user's cache.

An op counts as known only if its rule was discovered on this machine by this user. A plan from a stranger can name an
op but not bring its rule, so it cannot make anything else run.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from superscaler.errors import PlanError
from superscaler.ir.graph import Op
from superscaler.ir.rules.rule import Rule, Shape
from superscaler.ir.writing import write_at_once

Shapes = tuple[Shape, ...]
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){1,3}")


class Found(msgspec.Struct, frozen=True):
    """The rule of an op with these arguments at these shapes."""

    args: str
    ins: Shapes
    outs: Shapes
    rule: Rule


class Record(msgspec.Struct, frozen=True):
    """All that is known of one op. ``version``: of the op and of torch; another version is discovered anew."""

    target: str
    version: str
    rules: tuple[Found, ...] = ()


def cache_dir() -> Path:
    """``$SUPERSCALER_CACHE``, or ``superscaler`` in the user's cache directory."""
    given = os.environ.get("SUPERSCALER_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "superscaler"


def _path(target: str) -> Path | None:
    return cache_dir() / "rules" / f"{target}.json" if _TARGET.fullmatch(target) else None


def record(target: str) -> Record | None:
    """What is known of an op; None if nothing is, or if its file cannot be read as such."""
    path = _path(target)
    try:
        return _read(path, path.stat().st_mtime_ns) if path is not None else None
    except OSError:
        return None


@lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> Record | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    return found if path.name == f"{found.target}.json" else None


def known(target: str) -> bool:
    """Whether a rule of this op has been discovered here."""
    return record(target) is not None


def spelled(args: tuple[Any, ...]) -> str:
    """Arguments as they are told apart."""
    return msgspec.json.encode(args).decode()


def find(op: Op, ins: Shapes, outs: Shapes) -> Rule | None:
    """The rule discovered for this op with its arguments at these shapes."""
    found = record(op.target)
    args = spelled(op.args)
    if found is not None:
        for entry in found.rules:
            if (entry.args, entry.ins, entry.outs) == (args, ins, outs):
                return entry.rule
    return None


def save(target: str, version: str, entry: Found) -> None:
    """Add a rule to an op's file, whole or not at all; rules of another version are dropped.

    Raises :class:`PlanError` if it cannot be written: an op without a kept rule could not be checked.
    """
    path = _path(target)
    if path is None:
        return
    old = record(target)
    kept = old.rules if old is not None and old.version == version else ()
    same = (entry.args, entry.ins, entry.outs)
    rules = (*(r for r in kept if (r.args, r.ins, r.outs) != same), entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(path, msgspec.json.encode(Record(target, version, rules)))
    except OSError as e:
        raise PlanError(
            f"the rule found for {target} cannot be kept", f"{path}: {e.strerror or e}",
            hint="SUPERSCALER_CACHE=DIR, a directory that may be written",
        ) from e  # fmt: skip
