"""Bodies through ``torch.compile``.

Ops whose code depends on what changes from step to step or from call to call (random draws, first indices) stay as they
are, between compiled stretches, and so do optimizer steps, which overwrite state by kernels of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from superscaler.runtime.body import Body, leaves
from superscaler.runtime.ops import INPLACE
from superscaler.runtime.resolve import Line

_SLEEPS = "superscaler.sleep"


def plain(body: Body) -> Callable[..., Any]:
    """The body as it is."""
    return body.module.forward


def compiled(body: Body) -> Callable[..., Any]:
    """The body, compiled for its shapes when it is first called."""
    kept = [line for line in body.lines if _stays(line)]
    if len(kept) == len(body.lines) or any(line.target in INPLACE for line in body.lines):
        return body.module.forward
    for node in body.module.graph.nodes:
        if node.meta.get("line") in kept:
            node.target = _opened(node.target)
    body.module.recompile()
    run = torch.compile(body.module, dynamic=False)
    names = {a for line in kept for a in leaves(line.args) if isinstance(a, str) and a.startswith("@")}
    return _boxing(run, _places(body, names)) if names else run


def _stays(line: Line) -> bool:
    if line.target.startswith(_SLEEPS):
        return True
    given = leaves(line.args)
    if line.target.startswith("superscaler.attention") and "@seed" not in given:
        return False  # of its parameters only the queries' place matters, and that is the same for all calls
    return any(isinstance(a, str) and a.startswith("@") for a in given)


@dataclass
class _Box:
    """Hides a number from the compiler, which would compile again for each of its values."""

    value: Any


def _opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is, on what is in the boxes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*(a.value if type(a) is _Box else a for a in args), **kwargs)

    call.__name__ = call.__qualname__ = getattr(function, "__name__", "op")
    return torch.compiler.disable(call)


def _places(body: Body, names: set[str]) -> tuple[int, ...]:
    """Which arguments of a body are the given parameters."""
    found = [node.name for node in body.module.graph.nodes if node.op == "placeholder"]
    return tuple(sorted(found.index("seed" if name == "@seed" else f"p{name[1:]}") for name in names))


def _boxing(run: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        given = list(args)
        for place in places:
            given[place] = _Box(given[place])
        return run(*given)

    return call
