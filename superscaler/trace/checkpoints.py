"""Activation checkpoints of the model itself are left out while tracing: what is recomputed is for the plan to say."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch.utils import checkpoint


class _Plain:
    """Stands for the autograd function of the reentrant form."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _no_hooks(*_: Any, **__: Any) -> Generator[None]:
    """Stands for the generator that surrounds the other form."""
    yield


@contextmanager
def not_recomputed() -> Generator[None]:
    """Inside it ``torch.utils.checkpoint.checkpoint(f, x)`` is ``f(x)``."""
    module: Any = checkpoint
    saved = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    module.CheckpointFunction, module._checkpoint_without_reentrant_generator = _Plain, _no_hooks
    try:
        yield
    finally:
        module.CheckpointFunction, module._checkpoint_without_reentrant_generator = saved
