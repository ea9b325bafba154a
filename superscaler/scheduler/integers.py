"""Integers as callers hand them over: of any integer type, alone or in a list; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import SupportsIndex, cast

from superscaler.errors import ScheduleError


def integer(name: str, value: object) -> int:
    """``value`` as an int. Raises :class:`ScheduleError` for what is no integer: a float, a string, a truth value."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ScheduleError(f"{name} is {value!r}", f"of type {type(value).__name__}", hint="an integer")
    return index(value)


def integers(name: str, value: object) -> tuple[int, ...]:
    """A list, or anything else of several integers, as a tuple."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ScheduleError(f"{name} is {value!r}", f"of type {type(value).__name__}", hint="a list of integers")
    return tuple(integer(f"{name}[{place}]", each) for place, each in enumerate(cast(Iterable[object], value)))


def one_or_several(name: str, value: object) -> int | tuple[int, ...]:
    """An integer for all, or one for each."""
    return integers(name, value) if _several(value) else integer(name, value)


def limits(name: str, value: object) -> int | tuple[int | None, ...] | None:
    """A limit for all or one for each, of which any may be None: unlimited."""
    if value is None:
        return None
    if not _several(value):
        return integer(name, value)
    each = enumerate(cast(Iterable[object], value))
    return tuple(None if limit is None else integer(f"{name}[{place}]", limit) for place, limit in each)


def _several(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)
