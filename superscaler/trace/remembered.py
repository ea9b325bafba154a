"""What a model remembers in plain Python from one forward to the next: a step is traced once, and never sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import nn

from superscaler.errors import TraceError
from superscaler.trace.source import is_users, shown

OWN = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))
_OTHER = "other"  # stands for all values that are not plain: tensors, modules, objects
Key = tuple[str, str]  # path of a module, name of its attribute
Memory = Mapping[Key, Any]


def memory_of(model: nn.Module) -> Memory:
    """The numbers and names that modules hold as attributes, alone or in lists, dicts and sets."""
    return {
        (path, name): _plain(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in OWN
    }


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return tuple(_leaf(v) for v in value)
    if isinstance(value, dict):
        return frozenset((_leaf(k), _leaf(v)) for k, v in value.items())
    return len(value) if isinstance(value, set) else _OTHER


def _leaf(value: Any) -> Any:
    return (type(value), value) if isinstance(value, _PLAIN) else _OTHER


def differing(before: Memory, after: Memory) -> list[Key]:
    """What was there before and is another value now, where both are plain."""
    both = [key for key, value in before.items() if _OTHER not in (value, after.get(key, _OTHER))]
    return [key for key in both if before[key] != after[key]]


@dataclass
class Watch:
    """Finds the user's lines that change these attributes, by looking at them after every line."""

    model: nn.Module
    keys: list[Key]
    lines: dict[Key, str] = field(default_factory=dict[Key, str])
    _last: str = ""
    _seen: dict[Key, Any] = field(default_factory=dict[Key, Any])

    def during(self, run: Callable[[], Any]) -> None:
        """Call ``run`` under the watch."""
        self._last, self._seen = "", self._look()
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run()
        finally:
            sys.settrace(before)
        self._compare()

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._step if is_users(frame.f_code.co_filename) else None

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._compare()
        at: FrameType | None = frame if event != "return" else frame.f_back
        while at is not None and not is_users(at.f_code.co_filename):
            at = at.f_back
        self._last = f"{at.f_code.co_filename}:{at.f_lineno}" if at is not None else ""
        return self._step

    def _compare(self) -> None:
        now = self._look()
        self.lines.update({key: self._last for key in self.keys if now[key] != self._seen[key]})
        self._seen = now

    def _look(self) -> dict[Key, Any]:
        modules = ((key, vars(self.model.get_submodule(key[0]))) for key in self.keys)
        return {key: _plain(own.get(key[1])) for key, own in modules}


def refuse_what_changes_again(model: nn.Module, keys: list[Key], run: Callable[[], Any]) -> None:
    """Run the model twice, and refuse what the second forward changes again, and what tells the first from the others.

    An attribute that every forward sets to the same value (a length, a cache) is no memory. Raises
    :class:`TraceError` with the user's line.
    """
    watch = Watch(model, keys)
    before = memory_of(model)
    watch.during(run)
    between = memory_of(model)
    watch.during(run)
    again = set(differing(between, memory_of(model)))
    for key in keys:
        if key in again or before[key] in ((bool, False), (bool, True)):
            raise _refusal(key, watch.lines.get(key, ""), again=key in again)


def _refusal(key: Key, line: str, *, again: bool) -> TraceError:
    path, name = key
    return TraceError(
        f"{f'{path}.{name}' if path else name} is changed by {'every' if again else 'the first'} forward",
        *((f"at {shown(line)}",) if line else ()),
        "a step is traced once, so every step would see what the first one saw, and the change would be lost",
        hint="a buffer (register_buffer) for what steps count, an input for what the caller knows; leave out the rest"
        if again
        else "run the model once before it is compiled",
    )
