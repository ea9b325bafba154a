"""Text: any immutable type of the IR as JSON that people can read and compare, and back.

A struct that holds others stands over several lines, one element per line; all else stands on one line. JSON has no
infinity: such floats, which occur among the arguments of ops, are written ``"#inf"``, ``"#-inf"`` and ``"#nan"``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

Type = TypeVar("Type")
WIDTH = 120
_SPECIAL = {"#inf": math.inf, "#-inf": -math.inf, "#nan": math.nan}
_HUGE = re.compile(rb"(?<![\w.])-?[0-9]{19,}")


def dump(value: Any) -> str:
    """The text of a struct."""
    out: list[str] = []
    _write(value, 0, out)
    return "".join(out)


def parse(text: bytes | str, kind: type[Type]) -> Type:
    """The struct of type ``kind`` that a text gives.

    Raises :class:`ValueError` (of which msgspec's errors are) or :class:`RecursionError` for text that is not that.
    """
    data = text.encode() if isinstance(text, str) else text
    huge = _HUGE.search(data)
    if huge is not None:
        raise ValueError(f"a number of {len(huge.group())} digits at byte {huge.start()}")
    if not any(f'"{mark}"'.encode() in data for mark in _SPECIAL):
        return msgspec.json.decode(data, type=kind)
    return msgspec.convert(_restored(msgspec.json.decode(data)), type=kind)


def _restored(value: Any) -> Any:
    """Special floats in the place of what stands for them."""
    if isinstance(value, list):
        return [_restored(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {k: _restored(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def _marked(value: Any) -> Any:
    """What JSON can say in the place of special floats."""
    if isinstance(value, list | tuple):
        return [_marked(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {k: _marked(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not math.isfinite(value):
        return "#nan" if math.isnan(value) else "#inf" if value > 0 else "#-inf"
    return value


def _line(value: Any) -> str:
    text = msgspec.json.encode(value)
    if b"null" in text:
        text = msgspec.json.encode(_marked(msgspec.to_builtins(value)))
    return text.decode()


def _write(value: Any, level: int, out: list[str]) -> None:
    if isinstance(value, msgspec.Struct) and _holds_others(value):
        _block("{", [(f"{_line(k)}: ", v) for k, v in _fields(value)], "}", level, out)
    elif isinstance(value, Mapping) and (_structs(value.values()) or len(_line(value)) > WIDTH):
        _block("{", [(f"{_line(str(k))}: ", v) for k, v in value.items()], "}", level, out)
    elif isinstance(value, list | tuple) and (_structs(value) or (_nested(value) and len(_line(value)) > WIDTH)):
        _block("[", [("", v) for v in value], "]", level, out)
    else:
        out.append(_line(value))


def _block(opening: str, members: list[tuple[str, Any]], closing: str, level: int, out: list[str]) -> None:
    indent = "\n" + " " * (level + 1)
    out.append(opening)
    for i, (name, member) in enumerate(members):
        out.append(("," if i else "") + indent + name)
        _write(member, level + 1, out)
    out.append("\n" + " " * level + closing if members else closing)


def _structs(values: Iterable[Any]) -> bool:
    return any(isinstance(v, msgspec.Struct) for v in values)


def _nested(values: Iterable[Any]) -> bool:
    return any(isinstance(v, list | tuple | dict) for v in values)


def _holds_others(value: msgspec.Struct) -> bool:
    """Whether a struct has a field of several structs, so that it stands over several lines."""
    if value.__struct_config__.array_like:
        return False
    members = (getattr(value, name) for name in value.__struct_fields__)
    return any(
        _structs(m.values() if isinstance(m, Mapping) else m) for m in members if isinstance(m, Mapping | list | tuple)
    )


def _fields(value: msgspec.Struct) -> list[tuple[str, Any]]:
    """Names and values as msgspec writes them: the tag first, defaults left out where the type says so."""
    config = value.__struct_config__
    found: list[tuple[str, Any]] = []
    if config.tag is not None:
        found.append((str(config.tag_field), config.tag))
    defaults = dict(zip(reversed(value.__struct_fields__), reversed(value.__struct_defaults__), strict=False))
    for name, written in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
        member = getattr(value, name)
        if not (config.omit_defaults and name in defaults and member == defaults[name]):
            found.append((written, member))
    return found
