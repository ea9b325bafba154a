"""Which module is running, while a model is traced."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Places:
    """The paths of the modules that are running, outermost first, kept by hooks."""

    def __init__(self) -> None:
        self._running: list[str] = []

    @property
    def current(self) -> str:
        """The path of the innermost module that is running; empty for the model itself."""
        return self._running[-1] if self._running else ""

    @property
    def busy(self) -> bool:
        """Whether the model is running: else autograd is, or the loss."""
        return bool(self._running)

    @contextmanager
    def watched(self, model: nn.Module) -> Generator[None]:
        """Watch every module of ``model``; one that is reachable by several paths goes by its first."""
        handles: list[Any] = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(path), prepend=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._running.append(path)

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
