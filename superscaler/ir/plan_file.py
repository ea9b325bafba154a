"""Plan files: one self-contained text file, written at once or not at all, and recognised as the one that was written.

The first lines give the format's version and a digest of all that follows; so a file that was cut off, edited or made
by a newer version is told apart from one that is merely wrong. The digest guards against accidents, not against people:
what a file says is proven by the check, whoever wrote it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from superscaler.errors import PlanFileError
from superscaler.ir import text
from superscaler.ir.argument import path_of
from superscaler.ir.writing import write_at_once

Type = TypeVar("Type")
VERSION = 1
_MADE = "a file that compile-plan or plan.save(...) wrote"
MAX_BYTES = 1 << 30
_OPENING = '{{\n"superscaler plan": {version},\n"digest": "{digest}",\n"plan": '
_CLOSING = "\n}\n"
_HEADER = re.compile(rb'\{\n"superscaler plan": ([0-9]{1,9}),\n"digest": "([0-9a-f]{64})",\n"plan": ')


def to_bytes(plan: Any) -> bytes:
    """The content of a plan's file."""
    body = text.dump(plan)
    digest = sha256(body.encode()).hexdigest()
    return (_OPENING.format(version=VERSION, digest=digest) + body + _CLOSING).encode()


def from_bytes(data: bytes, kind: type[Type], name: str = "the plan") -> Type:
    """The plan in a file's content, not yet checked. ``name``: the file, for messages.

    Raises :class:`PlanFileError` if it is truncated, edited, of a newer version, or no plan file at all.
    """
    data = data.replace(b"\r\n", b"\n")
    header = _HEADER.match(data)
    if header is None:
        raise _unrecognised(data, name)
    version = int(header.group(1))
    if version > VERSION:
        raise PlanFileError(
            f"{name} is of a newer version",
            f"its format is {version}; this superscaler reads formats up to {VERSION}",
            hint="a newer superscaler, or compile the plan again",
        )
    if not data.endswith(_CLOSING.encode()):
        raise PlanFileError(
            f"{name} is truncated", "its end is missing", hint="compile the plan again, or copy it again"
        )
    body = data[header.end() : -len(_CLOSING)]
    if sha256(body).hexdigest().encode() != header.group(2):
        raise PlanFileError(
            f"{name} was edited",
            "its content is not what its digest says",
            hint="change the plan's script and compile it again: files are not edited by hand",
        )
    try:
        return text.parse(body, kind)
    except (ValueError, RecursionError) as e:
        raise PlanFileError(f"{name} is not a plan", str(e)[:500], hint="compile the plan again") from e


def _unrecognised(data: bytes, name: str) -> PlanFileError:
    opening = _OPENING.format(version=VERSION, digest="").encode()[:20]
    if not data:
        return PlanFileError(f"{name} is empty", hint="compile the plan again")
    if data.startswith(opening[: len(data)]):
        return PlanFileError(f"{name} is truncated", "its first lines are not whole", hint="compile it again")
    return PlanFileError(f"{name} is not a plan file", f"it does not begin with {opening.decode()!r} …", hint=_MADE)


def save(plan: Any, path: str | Path) -> None:
    """Write a plan's file. It appears whole, or the old one stays. Raises :class:`PlanFileError` (a full disk, say)."""
    target = path_of(path, 'plan.save("gpt.plan.json")')
    data = to_bytes(plan)
    try:
        write_at_once(target, data)
    except OSError as e:
        raise PlanFileError(
            f"cannot write {target}",
            f"{e.strerror or e}",
            hint="the name of a file, in a directory that exists, with enough space",
        ) from e


def load(path: str | Path, kind: type[Type]) -> Type:
    """The plan in a file, not yet checked. Raises :class:`PlanFileError`."""
    target = path_of(path, 'Plan.load("gpt.plan.json")')
    try:
        if target.stat().st_size > MAX_BYTES:
            raise PlanFileError(f"{target} is too large for a plan", f"more than {MAX_BYTES >> 20} MiB", hint=_MADE)
        data = target.read_bytes()
    except OSError as e:
        raise PlanFileError(f"cannot read {target}", f"{e.strerror or e}", hint=_MADE) from e
    return from_bytes(data, kind, str(target))
