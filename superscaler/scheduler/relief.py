"""Activations on one device, and what may happen to them while nobody needs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Life:
    """One activation: its forward's start and end, when its backward starts, when its weight gradient ends."""

    begin: int
    made: int
    needed: int
    end: int


@dataclass(frozen=True, slots=True)
class Relief:
    """What happens to an activation between its forward and its backward.

    ``"keep"``; ``"swap"``: ``out`` and ``back`` are the starts of its two transfers; ``"recompute"``: ``back`` is the
    start of its second forward (the first one gives its memory back at its end).
    """

    how: str
    out: int = -1
    back: int = -1
