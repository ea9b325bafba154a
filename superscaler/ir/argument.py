"""Arguments as callers hand them over: whole numbers of any type, alone or in a list, and paths; anything else is
refused by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from operator import index
from pathlib import Path
from typing import SupportsIndex, TypeVar, cast

from superscaler.errors import UsageError, did_you_mean

Named = TypeVar("Named")


def whole(value: object, name: str) -> int:
    """``value`` as an int. Raises :class:`UsageError` that calls it ``name``: for a float, text, a truth value."""
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with contextlib.suppress(TypeError):  # arrays are only now asked whether they are of one number
            return index(value)
    raise UsageError(f"{name} must be a whole number, not {shown(value)}", hint="1, 2, …")


def wholes(value: object, name: str) -> tuple[int, ...]:
    """A list, or anything else of several whole numbers, as a tuple."""
    if not _several(value):
        raise UsageError(f"{name} must be several whole numbers, not {shown(value)}", hint="a list")
    return tuple(whole(each, f"{name}[{place}]") for place, each in enumerate(cast(Iterable[object], value)))


def whole_or_several(value: object, name: str) -> int | tuple[int, ...]:
    """A whole number for all, or one for each."""
    return wholes(value, name) if _several(value) else whole(value, name)


def limits(value: object, name: str) -> int | tuple[int | None, ...] | None:
    """A limit for all or one for each, of which any may be None: unlimited."""
    if value is None:
        return None
    if not _several(value):
        return whole(value, name)
    each = enumerate(cast(Iterable[object], value))
    return tuple(None if limit is None else whole(limit, f"{name}[{place}]") for place, limit in each)


def path_of(value: object, hint: str) -> Path:
    """``value`` as a path. Raises :class:`UsageError` for what names no file: another type, nothing, bytes."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{shown(value)} is no path", hint=hint)
    name: object = value if isinstance(value, str) else value.__fspath__()
    if not isinstance(name, str) or not name or "\0" in name or not _encodable(name):
        raise UsageError(f"{name!r} is no path", "no file can have this name", hint=hint)
    return Path(name)


def known(name: object, names: Mapping[str, Named], otherwise: str) -> Named:
    """What has this name. Raises :class:`UsageError` for any other word or value: ``otherwise``, and the name."""
    if not isinstance(name, str) or name not in names:
        raise UsageError(f"{otherwise} {shown(name)}", hint=did_you_mean(str(name), names))
    return names[name]


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value as an error quotes it: as it is written, or its type where that could be long."""
    return repr(value) if isinstance(value, str | int | float | tuple | None) else f"a {type(value).__name__}"


def _several(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)
