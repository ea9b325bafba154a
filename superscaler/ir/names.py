"""Names in text: as they are, or quoted where they could be taken for something else; and how they read back."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

_PLAIN = r"[A-Za-z_][\w./*@-]*"
NAME = rf'(?:"(?:[^"\\]|\\.)*"|{_PLAIN})'
"""The pattern of what :func:`name_text` writes."""


def name_text(name: str) -> str:
    """A name, quoted if it could be taken for something else."""
    return name if re.fullmatch(_PLAIN, name) else msgspec.json.encode(name).decode()


def names_text(names: Iterable[str]) -> str:
    """Names in a row."""
    return ", ".join(map(name_text, names))
