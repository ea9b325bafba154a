"""What the configurations of all models share: replacing fields by name, and refusing what cannot be."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from superscaler.errors import UsageError, did_you_mean

C = TypeVar("C")


def override(config: C, values: Mapping[str, object], *, owner: str) -> C:
    """``config`` with the fields in ``values`` replaced; strings are converted to the type of their field.

    Raises :class:`UsageError` for an unknown field, or a value of another type.
    """
    kinds = typing.get_type_hints(type(config))
    for name in values:
        if name not in kinds:
            raise UsageError(f"{owner} has no setting {name!r}", hint=did_you_mean(name, kinds))
    converted = {name: _convert(owner, name, value, kinds[name]) for name, value in values.items()}
    return dataclasses.replace(typing.cast(Any, config), **converted)


def _convert(owner: str, name: str, value: object, kind: Any) -> object:
    try:
        return _parse(value, kind) if isinstance(value, str) else _accept(value, kind)
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"{owner}: {value!r} is no value for {name}",
            f"{name} is of type {_show(kind)}",
            hint=f"{name}={_EXAMPLES.get(_show(kind), 'a value of that type')}",
        ) from None


_EXAMPLES = {
    "int": "3",
    "int | None": "3, or none",
    "float": "0.1",
    "bool": "true or false",
    "tuple[int, ...]": "2,2,6,2",
}


def _show(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _parse(text: str, kind: Any) -> object:
    """``text`` as a value of ``kind``: int, float, bool, str, a tuple of one of these, or such a type ``| None``."""
    if isinstance(kind, types.UnionType):
        (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        return None if text.lower() == "none" else _parse(text, inner)
    if typing.get_origin(kind) is tuple:
        return tuple(_parse(part, typing.get_args(kind)[0]) for part in text.split(",") if part)
    if kind is bool:
        return _BOOLEANS[text.lower()]
    return kind(text)


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _accept(value: object, kind: Any) -> object:
    """``value`` if it is of ``kind`` (an int is a float, a bool is no int); raises TypeError otherwise."""
    if isinstance(kind, types.UnionType):
        (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        return None if value is None else _accept(value, inner)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_accept(part, typing.get_args(kind)[0]) for part in typing.cast("list[object]", value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def require(holds: bool, what: str, *details: str, hint: str) -> None:
    """Raise :class:`UsageError` unless ``holds``: for the checks of a configuration."""
    if not holds:
        raise UsageError(what, *details, hint=hint)


def require_positive(owner: str, **sizes: int) -> None:
    """Raise :class:`UsageError` that names the first of ``sizes`` that is not at least 1."""
    for name, size in sizes.items():
        require(size >= 1, f"{owner}: {name} must be at least 1, not {size}", hint=f"{name}=1, or more")


def require_divides(owner: str, part: str, ways: int, whole: str, size: int) -> None:
    """Raise :class:`UsageError` unless ``ways`` divides ``size``: heads into a hidden width, windows into an image."""
    near = max(ways, size - size % ways)
    require(size % ways == 0, f"{owner}: {part} {ways} does not divide {whole} {size}", hint=f"{whole}={near}")


def require_probability(owner: str, name: str, value: float) -> None:
    """Raise :class:`UsageError` unless ``value`` is a dropout probability, in [0, 1)."""
    require(0.0 <= value < 1.0, f"{owner}: {name} must be in [0, 1), not {value}", hint=f"{name}=0: none")
