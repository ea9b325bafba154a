"""Random changes of a plan's data, at any place: what neither a compiler nor a fault generator would think of."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

Path = tuple[Any, ...]
PROGRAM = (
    "values", "blocks", "blocks", "blocks", "order", "frees", "buffers", "inputs", "state", "outputs", "gradients",
    "arena", "workers",
)  # fmt: skip
ENTRY = ("routes", "groupings", "definitions", "definitions")
PLAN = ("space", "state")
EXTREMES: tuple[Any, ...] = (
    -1, 0, 1 << 17, 1 << 31, (1 << 60) - 1, -(1 << 60), "", "x" * 2000, "\u0000", None, True, 1e308, -0.0, [], {},
    [[[[[[[[[[]]]]]]]]]], "$0", "$99", "#shape", "#start:zz", "aten.from_file.default", "superscaler.reshape",
    "__class__",
)  # fmt: skip


def data_of(plan: Any) -> Any:
    """A plan as JSON would have it."""
    return msgspec.json.decode(msgspec.json.encode(plan))


def paths(node: Any, before: Path = ()) -> Iterator[Path]:
    """All places of a document."""
    yield before
    if isinstance(node, dict):
        for key, inner in node.items():
            yield from paths(inner, (*before, key))
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from paths(inner, (*before, i))


def at(node: Any, path: Path) -> Any:
    for key in path:
        node = node[key]
    return node


def changed(node: Any, path: Path, value: Any) -> Any:
    """The document with another value at a place; what does not change is shared."""
    if not path:
        return value
    copy = node.copy()
    copy[path[0]] = changed(node[path[0]], path[1:], value)
    return copy


class Mutations:
    """Draws changes of one document; every part of a plan has its share of them, however small it is."""

    def __init__(self, document: Any, seed: int, *, extremes: bool = False) -> None:
        self.document = document
        self.rng = random.Random(seed)
        self.extremes = extremes
        self._places: dict[Path, list[Path]] = {}

    def draw(self) -> tuple[Path, Any]:
        """(place, the changed document)."""
        while True:
            root = self._root()
            if root not in self._places:
                self._places[root] = list(paths(at(self.document, root)))
            path = (*root, *self.rng.choice(self._places[root]))
            old = at(self.document, path)
            new = self._other(old, root)
            if new is not old and new != old:
                return path, changed(self.document, path, new)

    def _root(self) -> Path:
        entry = self.rng.choice(sorted(self.document["entries"]))
        more = ("graph", "cluster", "certificate") if self.extremes else ()
        part = self.rng.choice((*PROGRAM, *ENTRY, *PLAN, *more))
        if part in PLAN and self.rng.random() < 0.5:
            return (part,)
        if part == "cluster":
            return (part,)
        if part in PROGRAM:
            programs = self.document["entries"][entry]["programs"]
            return ("entries", entry, "programs", self.rng.randrange(len(programs)), part)
        return ("entries", entry, part) if part not in PLAN else (part,)

    def _other(self, old: Any, root: Path) -> Any:
        if self.extremes and self.rng.random() < 0.3:
            return self.rng.choice(EXTREMES)
        if isinstance(old, bool):
            return not old
        if isinstance(old, int):
            return self._number(old, root)
        if isinstance(old, float):
            return old * 2 + 0.1
        if isinstance(old, str):
            return self._like(old, root)
        if isinstance(old, list) and old:
            return self._list(old)
        if isinstance(old, dict) and old:
            return self._dict(old)
        return old

    def _number(self, old: int, root: Path) -> int:
        if self.rng.random() < 0.5:
            return old + self.rng.choice((1, -1, 2, -2, 64, -64))
        return self._like(old, root)

    def _like(self, old: Any, root: Path) -> Any:
        """Another value of the same type from the same part of the plan."""
        places = self._places[root]
        some = (at(self.document, (*root, *path)) for path in self.rng.sample(places, min(80, len(places))))
        return self.rng.choice([v for v in some if type(v) is type(old)] or [old])

    def _list(self, old: list[Any]) -> list[Any]:
        new, i, j = list(old), self.rng.randrange(len(old)), self.rng.randrange(len(old))
        match self.rng.randrange(4):
            case 0:
                del new[i]
            case 1:
                new.insert(j, new[i])
            case 2:
                new[i], new[j] = new[j], new[i]
            case _:
                new.insert(j, new.pop(i))
        return new

    def _dict(self, old: dict[str, Any]) -> dict[str, Any]:
        new, one, other = dict(old), self.rng.choice(list(old)), self.rng.choice(list(old))
        if self.rng.random() < 0.5:
            del new[one]
        else:
            new[one], new[other] = new[other], new[one]
        return new
