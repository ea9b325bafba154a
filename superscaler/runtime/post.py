"""Posts: communications under way, started where they stand, finished where their values are needed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from superscaler.runtime.comm import Handle

UnderWay = Iterable[Handle]
"""What has been posted: ``yield from`` it gives what must be waited for. Its result is what was received, unless that
was given its place."""


class Post:
    """A generator of handles that has run up to its first one, that is, until it has posted something."""

    __slots__ = ("handle", "run", "value")

    def __init__(self, run: Generator[Handle, None, Any]) -> None:
        self.run = run
        self.value: Any = None
        self.handle: Handle | None = None
        self._next()

    def _next(self) -> None:
        try:
            self.handle = next(self.run)
        except StopIteration as end:
            self.handle, self.value = None, end.value

    def __iter__(self) -> Generator[Handle, None, Any]:
        while self.handle is not None:
            yield self.handle
            self._next()
        return self.value


def posting(run: Callable[..., Generator[Handle, None, Any]]) -> Callable[..., Post]:
    """A function that posts when it is called."""
    return lambda *args: Post(run(*args))
