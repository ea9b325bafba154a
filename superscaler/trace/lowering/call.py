"""One node of the traced FX graph, its operands already values of the draft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from superscaler.trace.draft import Builder, Like, Value

Result = Value | tuple[Value | None, ...]


@dataclass(frozen=True)
class Call:
    """``args`` and ``kwargs`` as traced; ``named`` the same by the schema's names, defaults filled in.

    ``strides``: how the first argument lay in memory while it was traced, where an op reads memory and not elements.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]
    outs: tuple[Like | None, ...]
    strides: tuple[int, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.named[name]

    @property
    def out(self) -> Like:
        """The shape and dtype of the only output."""
        (like,) = self.outs
        assert like is not None
        return like


Lowering = Callable[[Builder, Call], Result]


def dims_of(value: Any, rank: int) -> list[int]:
    """A ``dim`` argument as sorted, non-negative dims; None or empty means all."""
    if value is None or value == [] or value == ():
        return list(range(rank))
    given = [value] if isinstance(value, int) else list(value)
    return sorted({d % rank for d in given}) if rank else []
