"""Blocks as code: one Python function per block of a Program, and one table of bindings per micro-batch.

``function(r, j, b, seed)``: ``r`` the registers, ``j`` the micro-batch, ``b`` the bindings of this instance (bodies,
their parameters, packings, transfers). Values of the block itself are Python locals, dropped after their last use. A
function that communicates is a generator of the handles it must wait for, or, where later items may run meanwhile, what
makes a post.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from superscaler.ir.program import At, Block
from superscaler.runtime.post import posting

Maker = Callable[[int], Any]  # micro-batch -> an entry of its table
_LOCAL = re.compile(r"\bv\d+(?:_\d+)*\b")


@dataclass
class Code:
    """A block's function. ``waits``: it communicates. ``posted``: later items may run while it waits."""

    block: Block
    source: str
    function: Callable[..., Any]
    makers: list[Maker]
    waits: bool
    posted: bool

    def table(self, microbatch: int) -> tuple[Any, ...]:
        """The bindings of one instance."""
        return tuple(make(microbatch) for make in self.makers)


@dataclass
class Emitter:
    """Writes the function of one block, line by line.

    ``var``: the expression for an instance of a value, a local name or a register.
    """

    name: str
    block: Block
    var: Callable[[int, At], str]
    lines: list[str] = field(default_factory=list)
    makers: list[Maker] = field(default_factory=list)
    posts: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> what it brings, and the line's begin
    transfers: int = 0
    interrupted: bool = False
    chained: bool = False

    def line(self, text: str) -> None:
        self.lines.append(text)

    def entry(self, maker: Maker) -> str:
        """A place in the table."""
        self.makers.append(maker)
        return f"b[{len(self.makers) - 1}]"

    def transfer(self, target: str, expression: str, *, placed: bool = False, rounds: int = 1) -> None:
        """A communication: in a compute block finished here; in a comm block posted, and finished when it is needed.

        ``placed``: what it brings (if anything, ``target``) comes to the place that it is given.
        """
        self.transfers += 1
        # Behind a transfer that the block itself waits for, this one would be posted late: run the block as it stands.
        self.chained |= rounds > 1 or self.interrupted
        begin = "yield from" if placed else f"{target} = yield from"
        if self.block.lane == "compute":
            self.line(f"{begin} {expression}")
            return
        name = f"t{self.transfers}"
        self.line(f"{name} = {expression}")
        self.posts[name] = target, begin

    def settle(self, names: set[str] | None = None) -> None:
        """Finish the posted transfers that bring the given expressions, or all."""
        for name, (target, begin) in list(self.posts.items()):
            if names is None or target in names:
                del self.posts[name]
                begun = f"{name} = "
                if self.lines[-1].startswith(begun):  # nothing stands between
                    self.lines[-1] = f"{begin} {self.lines[-1].removeprefix(begun)}"
                else:
                    self.line(f"{begin} {name}")
                self.interrupted = True

    def code(self) -> Code:
        """The finished function."""
        self.settle()
        waits = self.transfers > 0
        posted = waits and self.block.lane != "compute" and not self.chained
        alone = posted and len(self.lines) == 1 and self.lines[0].startswith("yield from ")
        body = [f"return {self.lines[0].removeprefix('yield from ')}"] if alone else _dropping(self.lines) or ["pass"]
        head = f"def {self.name}(r, j, b, seed):"
        source = "\n    ".join([head, f'"""{self.block.name}"""', *body]) + "\n"
        namespace: dict[str, Any] = {}
        filename = f"<{self.name} of the plan>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        exec(compile(source, filename, "exec"), namespace)
        written = namespace[self.name]
        function = posting(written) if posted and not alone else written
        return Code(self.block, source, function, self.makers, waits, posted)


def _dropping(lines: list[str]) -> list[str]:
    """The lines, each local set to None after its last mention, so that its memory is free from there on."""
    last = {name: number for number, line in enumerate(lines) for name in _LOCAL.findall(line)}
    dropped: dict[int, list[str]] = {}
    for name, number in last.items():
        dropped.setdefault(number, []).append(name)
    return [
        line + (f"; {' = '.join(dropped[number])} = None" if number in dropped else "")
        for number, line in enumerate(lines)
    ]
