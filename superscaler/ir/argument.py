"""What users pass as numbers: whole ones, or an error that shows what came instead."""

from __future__ import annotations

from superscaler.errors import UsageError


def whole(value: object, name: str) -> int:
    """``value``, which must be a whole number. Raises :class:`UsageError` that calls it ``name``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, not {shown(value)}", hint="1, 2, …")
    return value


def shown(value: object) -> str:
    """A value as an error quotes it: as it is written, or its type where that could be long."""
    return repr(value) if isinstance(value, str | int | float | tuple | None) else f"a {type(value).__name__}"
