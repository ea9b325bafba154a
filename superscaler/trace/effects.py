"""What a module does beside computing its results, and what it reads that tells it from its likes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn


class Irregular(Exception):
    """The repeated modules of a model cannot be traced once."""


def hooks_of(module: nn.Module) -> list[int]:
    """Numbers that change when somebody hooks into a module or replaces a forward below it."""
    counts: list[int] = []
    for child in module.modules():
        own = vars(child)
        counts.append(len(own["_forward_hooks"]) + len(own["_forward_pre_hooks"]) + len(own["_backward_hooks"]))
        counts.append("forward" in own and child is not module)
    return counts


def effects_of(module: nn.Module, leaves: Sequence[Any]) -> list[int]:
    """Numbers that change when a module writes to a tensor or to itself."""
    found = [x._version for x in (*leaves, *module.parameters(), *module.buffers()) if isinstance(x, Tensor)]
    for child in module.modules():
        found.extend(id(value) for name, value in sorted(vars(child).items()) if name != "forward")
        found.extend(id(x) for x in vars(child)["_buffers"].values())
        found.extend(len(value) for value in vars(child).values() if isinstance(value, list | dict))
    return found


class _Tripwire:
    """Stands for a number or name that is another in every member: whoever looks at it fails."""

    def _touched(self, *_: Any, **__: Any) -> NoReturn:
        raise Irregular("a forward reads what tells its module from the others")

    __bool__ = __eq__ = __ne__ = __hash__ = __str__ = __repr__ = __format__ = _touched  # type: ignore[assignment]


@contextmanager
def tripwires(module: nn.Module, varying: Sequence[tuple[str, str]]) -> Generator[None]:
    """Inside it these attributes (path of the submodule, name) cannot be read."""
    saved: list[tuple[dict[str, Any], str, Any]] = []
    for path, name in varying:
        own = vars(module.get_submodule(path))
        saved.append((own, name, own[name]))
        own[name] = _Tripwire()
    try:
        yield
    finally:
        for own, name, value in saved:
            own[name] = value
