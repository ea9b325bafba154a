"""Numbers as callers hand them over: integers of any type, alone or in a list; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import SupportsIndex, cast

from superscaler.errors import ScheduleError, UsageError


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


def check_search(time_limit: object, seed: object) -> None:
    """Raise unless a search can be limited to ``time_limit`` (None, or 0 or more seconds) and started at ``seed``."""
    integer("seed", seed)
    number = isinstance(time_limit, int | float) and time_limit >= 0
    if time_limit is not None and not number:
        raise UsageError(f"time limit: {time_limit!r}", "no search can take that long", hint="0 or more seconds")


def _several(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)
