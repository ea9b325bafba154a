"""Bodies through ``torch.compile``, when a job starts: no step waits for a compiler.

Ops whose code depends on what changes from step to step (random draws) or from call to call stay as they are, between
compiled stretches; so do optimizer steps, which overwrite state by kernels of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from superscaler.runtime.body import Body, leaves
from superscaler.runtime.ops import INPLACE
from superscaler.runtime.resolve import Line

Examples = Callable[[], list[Any]]
_SLEEPS = "superscaler.sleep"


def plain(body: Body, examples: Examples) -> Callable[..., Any]:
    """The body as it is."""
    return body.module.forward


def compiled(body: Body, examples: Examples) -> Callable[..., Any]:
    """The body compiled for its shapes, by a call on ``examples()``."""
    kept = [line for line in body.lines if _stays(line)]
    if len(kept) == len(body.lines) or any(line.target in INPLACE for line in body.lines):
        return body.module.forward
    for node in body.module.graph.nodes:
        if node.meta.get("line") in kept:
            node.target = torch.compiler.disable(node.target)
    body.module.recompile()
    run = torch.compile(body.module, dynamic=False)
    run(*examples())
    return run


def _stays(line: Line) -> bool:
    if line.target.startswith(_SLEEPS):
        return True
    given = leaves(line.args)
    if line.target.startswith("superscaler.attention") and "@seed" not in given:
        return False  # of its parameters only the queries' place matters, and that is the same for all calls
    return any(isinstance(a, str) and a.startswith("@") for a in given)
