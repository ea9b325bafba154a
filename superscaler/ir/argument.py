"""Numbers as callers hand them over: whole ones of any type, alone or in a list; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import SupportsIndex, cast

from superscaler.errors import UsageError


def whole(value: object, name: str) -> int:
    """``value`` as an int. Raises :class:`UsageError` that calls it ``name``: for a float, text, a truth value."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise UsageError(f"{name} must be a whole number, not {shown(value)}", hint="1, 2, …")
    return index(value)


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


def shown(value: object) -> str:
    """A value as an error quotes it: as it is written, or its type where that could be long."""
    return repr(value) if isinstance(value, str | int | float | tuple | None) else f"a {type(value).__name__}"


def _several(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)
